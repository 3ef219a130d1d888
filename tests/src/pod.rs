//! The DaemonSet that is shipped, as flags of docker: what it gives to its container, and nothing else. Each of its keys must be
//! known here, so that one that is added is carried over, or named as of no concern to the container.

use std::{fs, path::Path};

use serde_json::{Map, Value};

/// What the container is run with.
#[derive(Debug)]
pub struct Pod {
    /// Flags of `docker run`.
    pub flags: Vec<String>,
    /// Of the program.
    pub arguments: Vec<String>,
    /// Its port.
    pub port: u64,
    /// Paths that must be answered with 200: readiness, liveness.
    pub probes: [String; 2],
    /// Capabilities that are added.
    pub capabilities: Vec<String>,
}

impl Pod {
    /// Reads the manifest; its state and its configuration are put below `home`.
    ///
    /// # Panics
    /// When there is a key that nobody has thought of here.
    pub fn read(text: &str, home: &Path) -> Self {
        let documents: Vec<Value> = serde_saphyr::from_multiple(text).expect("YAML");
        let [_namespace, config, set] = <[Value; 3]>::try_from(documents).expect("three objects");
        let template = &set["spec"]["template"]["spec"];
        let mut spec = object(template);
        assert_eq!(take(&mut spec, "hostPID"), true);
        let mut flags: Vec<String> = ["--pid", "host", "--network", "none"].map(str::to_owned).into();
        let mut security = object(&take(&mut spec, "securityContext"));
        // Docker's own list is the runtime's default here.
        assert_eq!(take(&mut security, "seccompProfile")["type"], "RuntimeDefault");
        none_left(&security);
        let volumes = take(&mut spec, "volumes");
        let containers = take(&mut spec, "containers");
        // Of the pod's life in the cluster.
        for key in [
            "automountServiceAccountToken",
            "enableServiceLinks",
            "priorityClassName",
            "tolerations",
            "terminationGracePeriodSeconds",
        ] {
            assert!(!take(&mut spec, key).is_null(), "{key}");
        }
        none_left(&spec);

        let [container] = containers.as_array().expect("a list").as_slice() else { panic!("one container") };
        let mut container = object(container);
        let capabilities = security_of(&mut container, &mut flags);
        for mount in take(&mut container, "volumeMounts").as_array().expect("a list") {
            flags.extend(mounted(mount, &volumes, &config["data"], home));
        }
        let memory = take(&mut container, "resources")["limits"]["memory"].clone();
        let memory = memory.as_str().and_then(|text| text.strip_suffix("Mi")).expect("in MiB");
        flags.extend(["--memory".to_owned(), format!("{memory}m")]);
        let probe = |probe: Value| probe["httpGet"]["path"].as_str().expect("a path").to_owned();
        let probes = ["readinessProbe", "livenessProbe"].map(|key| probe(take(&mut container, key)));
        let port = take(&mut container, "ports")[0]["containerPort"].as_u64().expect("a port");
        let arguments = strings(&take(&mut container, "args"));
        for key in ["name", "image"] {
            assert!(take(&mut container, key).is_string(), "{key}");
        }
        none_left(&container);
        Self { flags, arguments, port, probes, capabilities }
    }
}

fn security_of(container: &mut Map<String, Value>, flags: &mut Vec<String>) -> Vec<String> {
    let mut security = object(&take(container, "securityContext"));
    assert_eq!(take(&mut security, "privileged"), false);
    assert_eq!(take(&mut security, "allowPrivilegeEscalation"), false);
    assert_eq!(take(&mut security, "readOnlyRootFilesystem"), true);
    flags.extend(["--security-opt", "no-new-privileges", "--read-only"].map(str::to_owned));
    let (user, group) = (take(&mut security, "runAsUser"), take(&mut security, "runAsGroup"));
    flags.extend(["--user".to_owned(), format!("{user}:{group}")]);
    let mut capabilities = object(&take(&mut security, "capabilities"));
    for (key, flag) in [("drop", "--cap-drop"), ("add", "--cap-add")] {
        for name in strings(&capabilities[key]) {
            flags.extend([flag.to_owned(), name]);
        }
    }
    let added = strings(&take(&mut capabilities, "add"));
    take(&mut capabilities, "drop");
    none_left(&capabilities);
    none_left(&security);
    added
}

/// The flags of one mount. What may be written on the host is put below `home` instead.
fn mounted(mount: &Value, volumes: &Value, config: &Value, home: &Path) -> [String; 2] {
    let mut mount = object(mount);
    let name = take(&mut mount, "name");
    let at = take(&mut mount, "mountPath").as_str().expect("a path").to_owned();
    let read_only = take(&mut mount, "readOnly") == true;
    none_left(&mount);
    let volume = volumes.as_array().expect("a list").iter().find(|volume| volume["name"] == name);
    let volume = volume.unwrap_or_else(|| panic!("no volume is called {name}"));
    let bound = |from: &str| ["--volume".to_owned(), format!("{from}:{at}{}", if read_only { ":ro" } else { "" })];
    if let Some(path) = volume["hostPath"]["path"].as_str() {
        if read_only {
            return bound(path);
        }
        let own = home.join("host").join(path.trim_start_matches('/'));
        fs::create_dir_all(&own).expect("a directory");
        return bound(own.to_str().expect("UTF-8"));
    }
    if volume["configMap"].is_object() {
        let own = home.join("config");
        fs::create_dir_all(&own).expect("a directory");
        for (file, text) in object(config) {
            fs::write(own.join(file), text.as_str().expect("text")).expect("written");
        }
        assert!(read_only, "a ConfigMap is");
        return bound(own.to_str().expect("UTF-8"));
    }
    assert_eq!(volume["emptyDir"]["medium"], "Memory", "{volume}");
    ["--tmpfs".to_owned(), at]
}

fn object(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_else(|| panic!("no object: {value}"))
}

fn take(object: &mut Map<String, Value>, key: &str) -> Value {
    object.remove(key).unwrap_or_default()
}

fn none_left(object: &Map<String, Value>) {
    assert!(object.is_empty(), "what does a container get by this? {object:?}");
}

fn strings(value: &Value) -> Vec<String> {
    let items = value.as_array().unwrap_or_else(|| panic!("no list: {value}"));
    items.iter().map(|item| item.as_str().expect("a text").to_owned()).collect()
}
