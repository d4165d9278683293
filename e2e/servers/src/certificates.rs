//! Certificates for tests, made by the `openssl` command: an authority, a server, a client.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

/// An authority and what it has signed. The server's certificate is valid for `localhost` and `127.0.0.1`.
#[derive(Debug)]
pub struct Certificates {
    directory: TempDir,
}

impl Certificates {
    /// Makes a new authority, and a server's and a client's certificate signed by it.
    pub fn generate() -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("kanchi-tls-")
            .tempdir()
            .context("no temporary folder")?;
        let made = Self { directory };
        let ca = [
            "-subj",
            "/CN=kanchi test authority",
            "-addext",
            "basicConstraints=critical,CA:TRUE",
        ];
        made.openssl(
            &[
                "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", "ca.key", "-out", "ca.crt",
            ],
            &ca,
        )?;
        made.sign(
            "server",
            "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n",
        )?;
        made.sign("client", "extendedKeyUsage=clientAuth\n")?;
        Ok(made)
    }

    /// Returns a file of the set: `ca.crt`, `server.crt`, `server.key`, `client.crt` or `client.key`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Returns the PEM text of a file of the set.
    pub fn pem(&self, name: &str) -> Result<Vec<u8>> {
        fs::read(self.path(name)).with_context(|| format!("no {name}"))
    }

    fn sign(&self, who: &str, extensions: &str) -> Result<()> {
        let (key, request, certificate) = (format!("{who}.key"), format!("{who}.csr"), format!("{who}.crt"));
        let extension_file = format!("{who}.ext");
        fs::write(self.path(&extension_file), extensions)?;
        let subject = format!("/CN={who}");
        self.openssl(
            &[
                "req", "-newkey", "rsa:2048", "-nodes", "-keyout", &key, "-out", &request,
            ],
            &["-subj", &subject],
        )?;
        self.openssl(
            &[
                "x509",
                "-req",
                "-in",
                &request,
                "-CA",
                "ca.crt",
                "-CAkey",
                "ca.key",
                "-CAcreateserial",
                "-days",
                "2",
            ],
            &["-extfile", &extension_file, "-out", &certificate],
        )?;
        // Servers that give up root's rights still have to read it.
        fs::set_permissions(self.path(&key), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        Ok(())
    }

    fn openssl(&self, arguments: &[&str], more: &[&str]) -> Result<()> {
        let output = Command::new("openssl")
            .args(arguments)
            .args(more)
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .output()
            .context("openssl did not start")?;
        ensure!(
            output.status.success(),
            "openssl failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}
