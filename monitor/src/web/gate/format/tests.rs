use super::*;

const HASH: &str = "$2y$10$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi";

fn parsed(text: &str) -> Result<Wanted, Wrong> {
    parse(text, Path::new("/etc/defib"))
}

#[test]
fn all_that_is_done_here_is_read() {
    let wanted = parsed(&format!(
        "# Who may come in.\n\
         tls_server_config:\n  cert_file: web.crt\n  key_file: /keys/web.key\n  client_auth_type: RequireAndVerifyClientCert\n  \
         client_ca_file: ca.crt\n  min_version: TLS13\n  prefer_server_cipher_suites: false\n\
         http_server_config:\n  http2: false\n  headers:\n    Strict-Transport-Security: max-age=31536000\n    X-Frame-Options: ''\n\
         basic_auth_users:\n  prometheus: {HASH}\n  \"on call\": {HASH}\n"
    ))
    .expect("valid");
    let tls = wanted.tls.expect("TLS");
    assert_eq!(tls.certificate, Path::new("/etc/defib/web.crt"), "relative to the file");
    assert_eq!(tls.key, Path::new("/keys/web.key"));
    assert_eq!(tls.clients, Clients::Right("/etc/defib/ca.crt".into()));
    assert_eq!((tls.least, tls.most, tls.own_order), (Version::Tls13, Version::Tls13, false));
    assert_eq!(wanted.users.keys().collect::<Vec<_>>(), ["on call", "prometheus"]);
    assert_eq!(wanted.headers.len(), 1, "{:?}", wanted.headers);
}

#[test]
fn the_file_that_the_documentation_shows_is_valid_also_with_what_it_shows_commented_out() {
    let docs = include_str!("../../../../../docs/configuration.md");
    let text = docs.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    for text in [text.to_owned(), text.replace("  #client", "  client").replace("  #min", "  min")] {
        let wanted = parsed(&text).unwrap_or_else(|wrong| panic!("{wrong:?}: {text}"));
        let certificates = text.contains("\n  client");
        let tls = wanted.tls.expect("TLS");
        assert_eq!((tls.clients != Clients::Any, tls.least == Version::Tls13), (certificates, certificates));
        assert!(wanted.users.contains_key("prometheus"));
    }
}

#[test]
fn an_empty_file_wants_nothing() {
    for text in
        ["", "\n# nothing yet\n", "basic_auth_users:\n", "tls_server_config:\n", "http_server_config:\n  headers:\n"]
    {
        let wanted = parsed(text).unwrap_or_else(|wrong| panic!("{text:?}: {wrong:?}"));
        assert!(wanted.tls.is_none() && wanted.users.is_empty() && wanted.headers.is_empty(), "{text:?}");
    }
}

#[test]
fn what_is_wrong_or_not_done_here_names_its_key_and_the_mend_and_no_secret() {
    let tls = |line: &str| format!("tls_server_config:\n  cert_file: a\n  key_file: b\n  {line}\n");
    let user = |line: &str| format!("basic_auth_users:\n  {line}\n");
    for (text, wants) in [
        ("tls_config: {}\n".to_owned(), &["tls_config", "tls_server_config"][..]),
        (tls("certfile: x"), &["certfile", "cert_file"]),
        (tls("key_file: c"), &["key_file"]),
        ("tls_server_config:\n  cert_file: a\n".to_owned(), &["key_file", "is missing"]),
        ("tls_server_config:\n  min_version: TLS12\n".to_owned(), &["cert_file", "is missing"]),
        (tls("min_version: TLS10"), &["min_version", "TLS12, TLS13"]),
        (tls("min_version: TLS13\n  max_version: TLS12"), &["min_version", "greater"]),
        (tls("cert: |\n    PEM"), &["cert", "cert_file"]),
        (tls("cipher_suites: [TLS_RSA]"), &["cipher_suites", "leave it out"]),
        (tls("curve_preferences: [X25519]"), &["curve_preferences", "leave it out"]),
        (tls("client_allowed_sans: [a]"), &["client_allowed_sans", "client_ca_file"]),
        (tls("client_auth_type: RequireAnyClientCert"), &["client_auth_type", "RequireAndVerifyClientCert"]),
        (tls("client_auth_type: RequireAndVerifyClientCert"), &["client_ca_file", "is missing"]),
        (tls("client_ca_file: ca"), &["client_auth_type", "RequireAndVerifyClientCert"]),
        (tls("client_auth_type: Sometimes"), &["client_auth_type", "NoClientCert"]),
        ("http_server_config:\n  http2: true\n".to_owned(), &["http2", "false"]),
        ("http_server_config:\n  headers:\n    Server: x\n".to_owned(), &["headers", "Strict-Transport-Security"]),
        ("http_server_config:\n  headers:\n    X-Frame-Options: no\n".to_owned(), &["X-Frame-Options", "sameorigin"]),
        ("rate_limit:\n  interval: 1s\n".to_owned(), &["rate_limit", "leave it out"]),
        (user("alice: swordfish"), &["basic_auth_users", "alice", "htpasswd"]),
        (user("alice: $2y$10$swordfish"), &["basic_auth_users", "alice", "htpasswd"]),
        (user(&format!("alice: {}", HASH.replace("$2y$", "$2x$"))), &["basic_auth_users", "htpasswd"]),
        (user(&format!("alice: {}", HASH.replace("$10$", "$31$"))), &["basic_auth_users", "cost 31", "4 to 14"]),
        (user(&format!("'a:b': {HASH}")), &["basic_auth_users", "colon"]),
        (user(&format!("alice: {HASH}\n  alice: {HASH}")), &["alice"]),
        ("basic_auth_users: [alice]\n".to_owned(), &["line 1"]),
        ("tls_server_config: [\n".to_owned(), &[]),
        ("just words\n".to_owned(), &[]),
    ] {
        let wrong = parsed(&text).err().unwrap_or_else(|| panic!("{text:?} must be refused"));
        let said = format!("{} {}", wrong.key.unwrap_or_default(), wrong.message);
        for want in wants {
            assert!(said.contains(want), "{text:?} gives {said:?}, which lacks {want:?}");
        }
        assert!(!said.contains("swordfish") && !said.contains("QOauhQ") && !said.contains('\n'), "{said:?}");
    }
}
