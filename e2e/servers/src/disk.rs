//! A small disk of its own for a folder, which a test can fill. Mounting needs root, or `sudo` without a password.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::child;

/// Written at once while the disk is filled.
const BLOCK: usize = 1 << 20;

/// A file system in memory, unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts an empty disk of so many MiB over a folder, which is made if need be and may be written to by this user.
    pub fn mount(path: &Path, mebibytes: u32) -> Result<Self> {
        fs::create_dir_all(path)?;
        let size = format!("size={mebibytes}m,mode=0777");
        let arguments = ["mount", "-t", "tmpfs", "-o", &size, "kanchi-test"];
        as_root(&arguments, path).context("a disk that can be filled must be mounted, which needs root")?;
        Ok(Self {
            path: path.to_path_buf(),
        })
    }

    /// Fills the disk to the last byte.
    pub fn fill(&self) -> Result<()> {
        let mut ballast = fs::File::create(self.ballast())?;
        let mut block = vec![0; BLOCK];
        // By smaller and smaller blocks: the last page counts, too.
        while !block.is_empty() {
            while ballast.write_all(&block).is_ok() {}
            block.truncate(block.len() / 16);
        }
        Ok(())
    }

    /// Gives the space back.
    pub fn free(&self) -> Result<()> {
        match fs::remove_file(self.ballast()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            result => Ok(result?),
        }
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: somebody who is about to end may have a file open. A failure leaves a folder behind.
        drop(as_root(&["umount", "--lazy"], &self.path));
    }
}

fn as_root(command: &[&str], path: &Path) -> Result<()> {
    let sudo: &[&str] = if child::is_root() { &[] } else { &["sudo", "-n"] };
    let mut words = sudo.iter().chain(command);
    let program = words.next().context("no command")?;
    let output = Command::new(program)
        .args(words)
        .arg(path)
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_nothing_when_full_and_is_gone_when_dropped() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("disk");
        let disk = SmallDisk::mount(&path, 2)?;
        fs::write(path.join("before"), "kept")?;
        disk.fill()?;
        assert!(fs::write(path.join("during"), "refused").is_err());
        assert_eq!(fs::read_to_string(path.join("before"))?, "kept");
        disk.free()?;
        fs::write(path.join("after"), "taken")?;
        drop(disk);
        assert_eq!(fs::read_dir(&path)?.count(), 0, "still mounted");
        Ok(())
    }
}
