//! Certificates of a test's own, and curl as a client that checks them.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, date_time_ymd,
};

/// Debian package curl.
const CURL: &str = "/usr/bin/curl";

/// The program that is missing; `None` when it is here.
pub fn missing() -> Option<&'static str> {
    (!Path::new(CURL).exists()).then_some("needs curl (Debian package curl)")
}

/// Who signs certificates, in a directory that is removed with it.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Authority {
    /// A new one; its certificate is `ca.crt`.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        // Not the name of what it signs: a certificate with its issuer's name would pass for its own issuer.
        params.distinguished_name.push(DnType::CommonName, "authority of a test");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("a certificate");
        let authority = Self { issuer: Issuer::new(params, key), directory };
        authority.write("ca.crt", &certificate.pem());
        authority
    }

    /// Signs a new certificate for `localhost`, which is valid up to that year: `NAME.crt`, `NAME.key`, each exchanged at once.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn sign(&self, name: &str, until: i32) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(["localhost".to_owned()]).expect("a name");
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        self.write(&format!("{name}.crt"), &certificate.pem());
        self.write(&format!("{name}.key"), &key.serialize_pem());
    }

    /// A file beside them.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file beside them, for nobody else to write, in the place of what was there.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, name: &str, text: &str) {
        let new = self.path(&format!("{name}.new"));
        fs::write(&new, text).expect("written");
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).expect("set");
        fs::rename(new, self.path(name)).expect("exchanged");
    }

    /// Asks `https://localhost:PORT/PATH`, and believes only what this authority has signed. Status and body; without a TLS
    /// connection, curl's words.
    ///
    /// # Errors
    /// When there was no answer.
    ///
    /// # Panics
    /// When curl does not start.
    pub fn ask(&self, address: SocketAddr, path: &str, how: &[&str]) -> Result<(u16, String), String> {
        let output = Command::new(CURL)
            .args(["--silent", "--show-error", "--max-time", "60", "--noproxy", "*", "--write-out", "\n%{http_code}"])
            .arg("--cacert")
            .arg(self.path("ca.crt"))
            .arg("--resolve")
            .arg(format!("localhost:{}:{}", address.port(), address.ip()))
            .args(how)
            .arg(format!("https://localhost:{}{path}", address.port()))
            .output()
            .expect("curl starts");
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, status) = text.rsplit_once('\n').expect("a status");
        Ok((status.parse().expect("a number"), body.to_owned()))
    }
}
