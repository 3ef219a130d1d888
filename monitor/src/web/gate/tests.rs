use std::{fs, os::unix::fs::PermissionsExt as _};

use prometheus::Registry;

use super::*;

const HASH: &str = "$2y$10$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi";

/// A directory with a certificate, its key and a file that names them, and nothing of it for others to write.
fn place() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    certificate(directory.path(), "web");
    let file = directory.path().join("web.yml");
    write(&file, "tls_server_config:\n  cert_file: web.crt\n  key_file: web.key\n");
    (directory, file)
}

fn certificate(directory: &Path, name: &str) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    write(&directory.join(format!("{name}.crt")), &made.cert.pem());
    write(&directory.join(format!("{name}.key")), &made.signing_key.serialize_pem());
}

fn write(file: &Path, text: &str) {
    fs::write(file, text).expect("written");
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).expect("set");
}

fn error(file: &Path) -> String {
    check(file).expect_err("must be refused").to_string()
}

#[test]
fn a_file_and_what_it_names_are_checked_together() {
    let (directory, file) = place();
    assert_eq!(check(&file).expect("right"), "over TLS, without passwords");
    let home = directory.path().display().to_string();
    certificate(directory.path(), "other");
    for (text, want) in [
        ("tls_server_config:\n  cert_file: web.crt\n  key_file: other.key\n", "/web.yml:3: key 'key_file': "),
        ("tls_server_config:\n  cert_file: web.crt\n  key_file: web.crt\n", "web.crt has no private key"),
        ("tls_server_config:\n  cert_file: web.key\n  key_file: web.key\n", "web.key has no certificate"),
        ("tls_server_config:\n  cert_file: gone.crt\n  key_file: web.key\n", ":2: key 'cert_file': "),
        ("basic_auth_users:\n  alice: x\n", ":1: key 'basic_auth_users': "),
        ("\n\nbasic_users:\n", "web.yml:3: key 'basic_users': "),
        ("# who\nbasic_auth_users: [alice]\n", "web.yml:2: key 'basic_auth_users': "),
    ] {
        write(&file, text);
        let message = error(&file);
        assert!(message.contains(want) && message.contains(&home), "{text:?} gives {message:?}, which lacks {want:?}");
    }
    // Who is not root cannot be made to do anything as root.
    let guarded: &[&str] = if rustix::process::geteuid().is_root() { &["web.yml", "web.crt", "web.key"] } else { &[] };
    for name in guarded {
        let (_directory, file) = place();
        let open = file.with_file_name(name);
        fs::set_permissions(&open, fs::Permissions::from_mode(0o666)).expect("set");
        let message = error(&file);
        assert!(message.contains(name) && message.contains("chmod go-w"), "{message}");
    }
}

#[tokio::test]
async fn what_has_changed_is_read_again_and_what_is_wrong_or_gives_away_is_not_taken() {
    let (directory, file) = place();
    write(
        &file,
        &format!("tls_server_config: {{ cert_file: web.crt, key_file: web.key }}\nbasic_auth_users: {{ a: {HASH} }}\n"),
    );
    let registry = Registry::new();
    let gate = Gate::open(Some(file.clone()), Hosts::default(), WebMetrics::new(&registry).expect("registered"))
        .expect("right");
    let seen = look(file.clone(), Vec::new()).await.expect("looked").expect("read").stamps;
    assert_eq!(seen.len(), 3);
    assert!(look(file.clone(), seen.clone()).await.expect("looked").is_none(), "nothing has changed");
    let ok = || {
        registry
            .gather()
            .iter()
            .find(|of| of.name().ends_with("reload_success"))
            .map(|of| of.get_metric()[0].get_gauge().get_value())
    };

    let first = gate.terms();
    certificate(directory.path(), "web");
    let attempt = look(file.clone(), seen).await.expect("looked").expect("changed");
    assert!(attempt.settled());
    gate.take(attempt.outcome);
    let second = gate.terms();
    assert!(!Arc::ptr_eq(&first, &second) && ok() == Some(1.0));

    for text in [
        "", // Emptied, and about to be written.
        "tls_server_config: { cert_file: web.crt, key_file: web.key }\n",
        &format!("basic_auth_users: {{ a: {HASH} }}\n"),
        "tls_server_config: {",
    ] {
        write(&file, text);
        gate.take(load(&file).outcome);
        assert!(Arc::ptr_eq(&second, &gate.terms()) && ok() == Some(0.0), "{text:?}");
    }
    fs::remove_file(&file).expect("removed");
    gate.take(load(&file).outcome);
    assert!(Arc::ptr_eq(&second, &gate.terms()));
    write(
        &file,
        &format!("tls_server_config: {{ cert_file: web.crt, key_file: web.key }}\nbasic_auth_users: {{ b: {HASH} }}\n"),
    );
    gate.take(load(&file).outcome);
    assert!(!Arc::ptr_eq(&second, &gate.terms()) && ok() == Some(1.0));
}

#[test]
fn credentials_are_read_as_browsers_and_prometheus_send_them() {
    let read = |text: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_bytes(text.as_bytes()).expect("a value"));
        credentials(&headers)
    };
    let basic = |text: &str| format!("Basic {}", BASE64_STANDARD.encode(text));
    assert_eq!(read(&basic("a:b:c")), Some(("a".to_owned(), "b:c".to_owned())));
    assert_eq!(read(&basic("ä:ö").replace("Basic", "basic")), Some(("ä".to_owned(), "ö".to_owned())));
    for text in ["", "Basic", "Basic ", "Basic ????", "Bearer YTpi", &basic("no colon")] {
        assert_eq!(read(text), None, "{text:?}");
    }
    assert_eq!(credentials(&HeaderMap::new()), None);
}
