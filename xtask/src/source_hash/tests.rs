//! The hash must change with what reaches the object and with nothing else.

use std::{error::Error, fs, io, path::Path};

use super::{of_sources, packages, unix_lines};

const LOCK: &str = r#"# generated
version = 4

[[package]]
name = "agent"
version = "0.1.0"
dependencies = [
 "both 2.0.0",
 "monitor-ebpf",
]

[[package]]
name = "aya-build"
version = "0.2.0"
checksum = "bb"
dependencies = [
 "serde",
]

[[package]]
name = "both"
version = "1.0.0"
source = "registry+https://example.org"
checksum = "b1"

[[package]]
name = "both"
version = "2.0.0"
source = "registry+https://example.org"
checksum = "b2"

[[package]]
name = "common"
version = "0.1.0"

[[package]]
name = "monitor-ebpf"
version = "0.1.0"
dependencies = [
 "aya-build",
 "both 1.0.0 (registry+https://example.org)",
 "common",
]

[[package]]
name = "serde"
version = "1.0.1"
checksum = "cc"
"#;

fn tree(order: &[&str], line_end: &str) -> io::Result<tempfile::TempDir> {
    let root = tempfile::tempdir()?;
    for path in order {
        let file = root.path().join(path);
        if let Some(directory) = file.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(file, format!("// {path}{line_end}fn f() {{}}{line_end}"))?;
    }
    fs::write(root.path().join("Cargo.lock"), LOCK.replace('\n', line_end))?;
    Ok(root)
}

const FILES: [&str; 5] = [
    "monitor-common/Cargo.toml",
    "monitor-common/src/lib.rs",
    "monitor-ebpf/Cargo.toml",
    "monitor-ebpf/src/main.rs",
    "monitor-ebpf/src/deep/er.rs",
];

fn edited(edit: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<bool> {
    let root = tree(&FILES, "\n")?;
    let before = of_sources(root.path())?;
    edit(root.path())?;
    Ok(of_sources(root.path())? != before)
}

#[test]
fn place_order_and_line_endings_do_not_matter() -> Result<(), Box<dyn Error>> {
    let hash = of_sources(tree(&FILES, "\n")?.path())?;
    assert_eq!(hash.len(), 64);
    let mut reversed = FILES;
    reversed.reverse();
    assert_eq!(of_sources(tree(&reversed, "\n")?.path())?, hash);
    assert_eq!(of_sources(tree(&FILES, "\r\n")?.path())?, hash);
    Ok(())
}

#[test]
fn every_source_matters() -> io::Result<()> {
    for path in FILES {
        assert!(edited(|root| fs::write(root.join(path), "other"))?, "{path}");
    }
    assert!(edited(|root| fs::write(root.join("monitor-ebpf/src/new.rs"), ""))?);
    assert!(edited(|root| {
        fs::rename(root.join("monitor-ebpf/src/deep/er.rs"), root.join("monitor-ebpf/src/deep/est.rs"))
    })?);
    Ok(())
}

#[test]
fn only_packages_that_reach_the_object_matter() -> io::Result<()> {
    let lock = |from: &str, to: &str| edited(|root| fs::write(root.join("Cargo.lock"), LOCK.replace(from, to)));
    assert!(lock("\"b1\"", "\"changed\"")?);
    assert!(!lock("\"b2\"", "\"changed\"")?, "a version that only the agent uses");
    assert!(!lock("\"cc\"", "\"changed\"")?, "what only a build script uses");
    assert!(!edited(|root| fs::write(root.join("README.md"), "words"))?);
    assert!(!edited(|root| fs::write(root.join("monitor-ebpf/src/.main.rs.swp"), "an editor's"))?);
    Ok(())
}

#[test]
fn dependencies_are_followed_to_the_version_meant() {
    let found = packages(LOCK, "monitor-ebpf").unwrap_or_default();
    let found: Vec<_> = found.iter().map(String::as_str).collect();
    assert_eq!(found, ["aya-build 0.2.0 bb", "both 1.0.0 b1", "common 0.1.0 ", "monitor-ebpf 0.1.0 "]);
    assert_eq!(packages(LOCK, "absent").err().as_deref(), Some("there is no package `absent`"));
}

#[test]
fn an_error_names_the_path() -> io::Result<()> {
    let root = tree(&FILES[1..], "\n")?;
    let error = of_sources(root.path()).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.starts_with("monitor-common/Cargo.toml: "), "{error}");
    Ok(())
}

#[test]
fn only_the_pair_is_a_line_ending() {
    assert_eq!(unix_lines(b"a\r\nb\rc\r\r\n\r"), b"a\nb\rc\r\n\r");
    assert_eq!(unix_lines(b""), b"");
}
