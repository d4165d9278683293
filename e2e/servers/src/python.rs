//! Virtual environments of Python, made once each in `$KANCHI_CACHE` (`~/.cache/kanchi`) and shared by all who need them.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Returns the `bin` folder of the environment `venv-<name>`; makes it at first use, of what pip installs for these
/// requirements, and says so.
///
/// # Errors
///
/// There is no Python 3 with `venv`, or pip cannot install the requirements.
pub(crate) fn environment(name: &str, requirements: &[String]) -> Result<PathBuf> {
    let cache = match std::env::var_os("KANCHI_CACHE") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache/kanchi"),
    };
    fs::create_dir_all(&cache).context("failed to create the cache folder")?;
    let folder = cache.join(format!("venv-{name}"));
    if !folder.join("complete").exists() {
        // Several processes may want it: one of them installs, the others wait for the lock.
        let lock = File::create(cache.join(format!("venv-{name}.lock"))).context("failed to create a lock file")?;
        lock.lock().context("failed to lock")?;
        if !folder.join("complete").exists() {
            say(&format!(
                "installing {} into {}",
                requirements.join(" "),
                folder.display()
            ));
            run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
            let mut pip = Command::new(folder.join("bin/pip"));
            pip.args(["install", "--quiet", "--disable-pip-version-check"]);
            run(pip.args(requirements))?;
            File::create(folder.join("complete")).context("failed to mark the environment complete")?;
        }
    }
    Ok(folder.join("bin"))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("failed to start {command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {errors}");
    Ok(())
}

#[expect(clippy::print_stderr, reason = "a download takes a while, and a log may be watched")]
fn say(text: &str) {
    eprintln!("{text}");
}
