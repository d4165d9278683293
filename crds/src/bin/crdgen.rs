//! Writes the definitions to `crds/yaml/`, their copies to the chart, and the reference pages; `--check` only compares.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use kanchi_crds::generate::{self, Generated};

fn main() -> ExitCode {
    let check = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => false,
        [only] if only == "--check" => true,
        _ => return fail("usage: crdgen [--check]"),
    };
    let files = match generate::all() {
        Ok(files) => files,
        Err(error) => return fail(&format!("failed to generate: {error}")),
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map_or_else(PathBuf::new, Path::to_path_buf);
    let mut stale = Vec::new();
    for Generated { path, text } in files {
        let target = root.join(&path);
        if std::fs::read_to_string(&target).is_ok_and(|now| now == text) {
            continue;
        }
        if !check {
            let folder = target.parent().unwrap_or(&root);
            if let Err(error) = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&target, text)) {
                return fail(&format!("failed to write {}: {error}", target.display()));
            }
        }
        stale.push(path);
    }
    match (check, stale.is_empty()) {
        (_, true) => ExitCode::SUCCESS,
        (true, false) => fail(&format!(
            "not what the types say: {}; run `cargo run -p kanchi-crds --bin crdgen`",
            stale.join(", ")
        )),
        (false, false) => {
            say(&format!("wrote {}", stale.join(", ")));
            ExitCode::SUCCESS
        }
    }
}

#[expect(clippy::print_stderr, reason = "a command that people run")]
fn say(text: &str) {
    eprintln!("{text}");
}

fn fail(text: &str) -> ExitCode {
    say(text);
    ExitCode::FAILURE
}
