//! The file that says who may come in and how, in the format of Prometheus' exporter-toolkit (its
//! `docs/web-configuration.md`): text → what is wanted. Pure.
//!
//! Nothing in it is ignored: whoever wrote a key relies on it. What this server does not do is an error with its mend.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    str::FromStr as _,
};

use axum::http::{HeaderName, HeaderValue};
use bcrypt::HashParts;
use serde::{Deserialize, de::IgnoredAny};

/// Costs of a hash that are taken. At 14 one check takes about a second; there is one at a time.
const COSTS: std::ops::RangeInclusive<u32> = 4..=14;
/// Headers that may be added, and values if only some make sense; as the exporter-toolkit has them.
const HEADERS: [(&str, &[&str]); 5] = [
    ("Content-Security-Policy", &[]),
    ("Strict-Transport-Security", &[]),
    ("X-Content-Type-Options", &["nosniff"]),
    ("X-Frame-Options", &["deny", "sameorigin"]),
    ("X-XSS-Protection", &[]),
];

/// What is wanted.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Without it, plain HTTP.
    pub(super) tls: Option<Tls>,
    /// Users with the bcrypt hash of their password; when there are none, nobody is asked.
    pub(super) users: BTreeMap<String, String>,
    /// Of each answer that has none of that name.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
}

/// How TLS is spoken.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tls {
    /// Our certificate and its chain, PEM.
    pub(super) certificate: PathBuf,
    /// Its key, PEM.
    pub(super) key: PathBuf,
    /// Whether clients show a certificate.
    pub(super) clients: Clients,
    /// The least version.
    pub(super) least: Version,
    /// The greatest one.
    pub(super) most: Version,
    /// Whose order of cipher suites counts.
    pub(super) own_order: bool,
}

/// Whether clients show a certificate, and the file of those who may have signed it, PEM.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Clients {
    /// They are not asked.
    Any,
    /// One that is shown must be right.
    RightIfGiven(PathBuf),
    /// Each shows a right one.
    Right(PathBuf),
}

/// Versions of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    /// 1.2
    Tls12,
    /// 1.3
    Tls13,
}

/// What is wrong: the key, where one is to blame, and why, with the mend.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    /// Its line, when the reader of the text knew it.
    pub(super) line: Option<u64>,
    /// The key.
    pub(super) key: Option<&'static str>,
    /// In one line.
    pub(super) message: String,
}

fn wrong<T>(key: &'static str, message: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { line: None, key: Some(key), message: message.into() })
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    tls_server_config: Option<TlsKeys>,
    http_server_config: Option<HttpKeys>,
    basic_auth_users: Option<BTreeMap<String, String>>,
    rate_limit: Option<IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TlsKeys {
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    client_auth_type: Option<String>,
    client_ca_file: Option<PathBuf>,
    min_version: Option<String>,
    max_version: Option<String>,
    prefer_server_cipher_suites: Option<bool>,
    cert: Option<IgnoredAny>,
    key: Option<IgnoredAny>,
    client_ca: Option<IgnoredAny>,
    client_allowed_sans: Option<IgnoredAny>,
    cipher_suites: Option<IgnoredAny>,
    curve_preferences: Option<IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct HttpKeys {
    http2: bool,
    headers: Option<BTreeMap<String, String>>,
}

/// Reads the text of a file that lies in `directory`, from where relative paths count.
pub(super) fn parse(text: &str, directory: &Path) -> Result<Wanted, Wrong> {
    let File { tls_server_config, http_server_config, basic_auth_users, rate_limit } = read(text)?;
    if rate_limit.is_some() {
        return wrong(
            "rate_limit",
            "is not done here; leave it out: connections and checks of passwords are bounded, and a proxy can do more",
        );
    }
    let (http, users) = (http_server_config.unwrap_or_default(), basic_auth_users.unwrap_or_default());
    if http.http2 {
        return wrong("http2", "is not spoken here; leave it out, or set it to false");
    }
    for (user, hash) in &users {
        check_user(user, hash)?;
    }
    Ok(Wanted {
        tls: tls_server_config.map(|keys| tls(keys, directory)).transpose()?,
        users,
        headers: headers(http.headers.unwrap_or_default())?,
    })
}

fn read(text: &str) -> Result<File, Wrong> {
    // An empty file is valid, and no YAML document.
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(File::default());
    }
    serde_saphyr::from_str(text).map_err(|error| {
        // Without the lines around it, in which hashes are.
        let error = error.without_snippet();
        let line = error.location().map(|at| at.line());
        Wrong { line, key: None, message: error.render().replace('\n', "; ") }
    })
}

fn tls(keys: TlsKeys, directory: &Path) -> Result<Tls, Wrong> {
    let elsewhere = [
        ("cert", keys.cert.is_some(), "is read from a file only; name that as cert_file"),
        ("key", keys.key.is_some(), "is read from a file only; name that as key_file"),
        ("client_ca", keys.client_ca.is_some(), "is read from a file only; name that as client_ca_file"),
        (
            "client_allowed_sans",
            keys.client_allowed_sans.is_some(),
            "is not looked at here; let client_ca_file be a CA that signs for those clients only",
        ),
        (
            "cipher_suites",
            keys.cipher_suites.is_some(),
            "cannot be chosen; leave it out: all that are offered have forward secrecy and authenticated encryption",
        ),
        ("curve_preferences", keys.curve_preferences.is_some(), "cannot be chosen; leave it out: X25519, P-256, P-384"),
    ];
    if let Some(&(key, _, why)) = elsewhere.iter().find(|(_, there, _)| *there) {
        return wrong(key, why);
    }
    let file = |key, path: Option<PathBuf>| match path {
        Some(path) if !path.as_os_str().is_empty() => Ok(directory.join(path)),
        _ => wrong(key, "is missing; tls_server_config needs cert_file and key_file"),
    };
    let (least, most) = (
        version("min_version", keys.min_version.as_deref(), Version::Tls12)?,
        version("max_version", keys.max_version.as_deref(), Version::Tls13)?,
    );
    if least > most {
        return wrong("min_version", "is greater than max_version");
    }
    let ca = keys.client_ca_file.map(|path| directory.join(path));
    Ok(Tls {
        certificate: file("cert_file", keys.cert_file)?,
        key: file("key_file", keys.key_file)?,
        clients: clients(keys.client_auth_type.as_deref().unwrap_or_default(), ca)?,
        least,
        most,
        own_order: keys.prefer_server_cipher_suites.unwrap_or(true),
    })
}

fn clients(kind: &str, ca: Option<PathBuf>) -> Result<Clients, Wrong> {
    const KEY: &str = "client_auth_type";
    match (kind, ca) {
        ("" | "NoClientCert", None) => Ok(Clients::Any),
        ("" | "NoClientCert", Some(_)) => {
            wrong(KEY, "asks for no certificate, but there is a client_ca_file; set it to RequireAndVerifyClientCert")
        }
        ("VerifyClientCertIfGiven", Some(ca)) => Ok(Clients::RightIfGiven(ca)),
        ("RequireAndVerifyClientCert", Some(ca)) => Ok(Clients::Right(ca)),
        ("VerifyClientCertIfGiven" | "RequireAndVerifyClientCert", None) => {
            wrong("client_ca_file", format!("is missing; {KEY} {kind} needs it"))
        }
        ("RequestClientCert" | "RequireAnyClientCert" | "RequireClientCert", _) => {
            wrong(KEY, format!("{kind} would check nothing; use RequireAndVerifyClientCert with a client_ca_file"))
        }
        _ => wrong(
            KEY,
            format!("{kind:?}: allowed are NoClientCert, VerifyClientCertIfGiven, RequireAndVerifyClientCert"),
        ),
    }
}

fn version(key: &'static str, text: Option<&str>, default: Version) -> Result<Version, Wrong> {
    match text {
        None => Ok(default),
        Some("TLS12") => Ok(Version::Tls12),
        Some("TLS13") => Ok(Version::Tls13),
        Some(other) => wrong(key, format!("{other:?}: allowed are TLS12, TLS13; older ones are not safe any more")),
    }
}

/// The hash itself is never repeated.
fn check_user(user: &str, hash: &str) -> Result<(), Wrong> {
    const KEY: &str = "basic_auth_users";
    if user.is_empty() || user.contains(':') || user.chars().any(char::is_control) {
        return wrong(KEY, format!("{user:?} is no user's name: it must not be empty, nor have a colon in it"));
    }
    let known = ["$2a$", "$2b$", "$2y$"].iter().any(|version| hash.starts_with(version));
    let Some(parts) = HashParts::from_str(hash).ok().filter(|_| known) else {
        let mend = "make one: htpasswd -nBC 10 USER (Debian package apache2-utils)";
        return wrong(KEY, format!("what {user:?} has is no bcrypt hash of a password; {mend}"));
    };
    if !COSTS.contains(&parts.get_cost()) {
        let (least, most) = (COSTS.start(), COSTS.end());
        let cost = parts.get_cost();
        return wrong(
            KEY,
            format!("the hash of {user:?} has cost {cost}; allowed are {least} to {most}, and 10 is usual"),
        );
    }
    Ok(())
}

fn headers(wanted: BTreeMap<String, String>) -> Result<Vec<(HeaderName, HeaderValue)>, Wrong> {
    const KEY: &str = "headers";
    let mut headers = Vec::new();
    for (name, value) in wanted {
        let Some((known, values)) = HEADERS.iter().find(|(known, _)| *known == name) else {
            return wrong(KEY, format!("{name:?}: allowed are {}", HEADERS.map(|(known, _)| known).join(", ")));
        };
        // Unset if blank, as the format has it.
        if value.is_empty() {
            continue;
        }
        if !values.is_empty() && !values.contains(&value.as_str()) {
            return wrong(KEY, format!("{known}: {value:?}: allowed are {}", values.join(", ")));
        }
        match (HeaderName::from_str(known), HeaderValue::from_str(&value)) {
            (Ok(name), Ok(value)) => headers.push((name, value)),
            _ => return wrong(KEY, format!("{known}: its value cannot stand in a header")),
        }
    }
    Ok(headers)
}

#[cfg(test)]
mod tests;
