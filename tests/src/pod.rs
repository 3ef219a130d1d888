//! The DaemonSet that is shipped, run by containerd, as most clusters do: with what the manifest gives to its container, and with
//! nothing else. Each of its keys must be known here, so that one that is added is carried over, or named as of no concern.
//!
//! Not by dockerd, whose version in Debian 12 knows neither CAP_BPF nor CAP_PERFMON.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Map, Value};

/// Debian package containerd, which that of Docker needs.
const CTR: &str = "/usr/bin/ctr";
/// What is made here, containers and their cgroups, is below this name.
const NAMESPACE: &str = "defib-test";
const CONTAINER: &str = "agent";
/// What a container has unless told otherwise (containerd, oci/spec.go). This client takes no `ALL`.
const USUAL: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// What the container is run with.
#[derive(Debug)]
pub struct Pod {
    /// Flags of `ctr run`.
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
        let mut flags: Vec<String> = ["--with-ns", "pid:/proc/self/ns/pid"].map(str::to_owned).into();
        let mut security = object(&take(&mut spec, "securityContext"));
        assert_eq!(take(&mut security, "seccompProfile")["type"], "RuntimeDefault");
        flags.push("--seccomp".to_owned());
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
        let memory = memory.as_str().and_then(|text| text.strip_suffix("Mi")?.parse::<u64>().ok()).expect("in MiB");
        flags.extend(["--memory-limit".to_owned(), (memory << 20).to_string()]);
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
    // As this client has it, too.
    assert_eq!(take(&mut security, "allowPrivilegeEscalation"), false);
    assert_eq!(take(&mut security, "readOnlyRootFilesystem"), true);
    flags.push("--read-only".to_owned());
    // As the image has it.
    assert_eq!((take(&mut security, "runAsUser"), take(&mut security, "runAsGroup")), (0.into(), 0.into()));
    let mut capabilities = object(&take(&mut security, "capabilities"));
    assert_eq!(strings(&take(&mut capabilities, "drop")), ["ALL"]);
    let added = strings(&take(&mut capabilities, "add"));
    let dropped = USUAL.into_iter().filter(|&usual| !added.iter().any(|name| name == usual));
    flags.extend(dropped.flat_map(|name| ["--cap-drop".to_owned(), format!("CAP_{name}")]));
    flags.extend(added.iter().flat_map(|name| ["--cap-add".to_owned(), format!("CAP_{name}")]));
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
    let bound = |from: &str| {
        let mode = if read_only { "ro" } else { "rw" };
        ["--mount".to_owned(), format!("type=bind,src={from},dst={at},options=rbind:rprivate:{mode}")]
    };
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
    ["--mount".to_owned(), format!("type=tmpfs,src=tmpfs,dst={at},options=nosuid:nodev")]
}

/// A container that runs, of an image that lies in a file.
#[derive(Debug)]
pub struct Container {
    socket: PathBuf,
    log: PathBuf,
    /// Its process.
    pub pid: String,
}

impl Container {
    /// What it needs; `None` when all is here.
    pub fn missing() -> Option<&'static str> {
        (!Path::new(CTR).exists()).then_some("ctr (Debian package containerd)")
    }

    /// Has the containerd behind `socket` run the image `name` of the file `image`; its log goes below `home`.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn run(pod: &Pod, socket: PathBuf, image: &Path, name: &str, home: &Path) -> Self {
        let (log, pid) = (home.join("container.log"), home.join("container.pid"));
        let mut container = Self { socket, log, pid: String::new() };
        // One that needs neither a kernel's module nor a file system of some kind.
        let snapshots = ["--snapshotter", "native"];
        container.ctr(&[&["images", "import"], &snapshots[..], &[image.to_str().expect("UTF-8")]].concat());
        let io = format!("file://{}", container.log.display());
        let files = ["--detach", "--log-uri", &io, "--pid-file", pid.to_str().expect("UTF-8")];
        let flags: Vec<_> = pod.flags.iter().map(String::as_str).collect();
        let program: Vec<_> = ["/usr/bin/defib"].into_iter().chain(pod.arguments.iter().map(String::as_str)).collect();
        container.ctr(&[&["run"], &snapshots[..], &files, &flags, &[name, CONTAINER], &program].concat());
        container.pid = fs::read_to_string(pid).expect("its process is known").trim().to_owned();
        container
    }

    /// A program in it, known by this word.
    pub fn command(&self, word: &str, words: &[&str]) -> Command {
        let mut command = self.client();
        command.args(["tasks", "exec", "--exec-id", word, CONTAINER]).args(words);
        command
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn ctr(&self, words: &[&str]) -> String {
        let output = self.client().args(words).stdin(Stdio::null()).output().expect("ctr starts");
        assert!(output.status.success(), "{words:?}: {}\n{}", String::from_utf8_lossy(&output.stderr), self.log());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn client(&self) -> Command {
        let mut client = Command::new(CTR);
        client.arg("--address").arg(&self.socket).args(["--namespace", NAMESPACE]);
        client
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.log());
        }
        for words in [&["tasks", "delete", "--force"][..], &["containers", "delete"]] {
            self.client().args(words).arg(CONTAINER).output().ok();
        }
        // containerd leaves the parent of its cgroup behind, in every hierarchy.
        let mounts = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        for mount in mounts.chain([PathBuf::from("/sys/fs/cgroup")]) {
            fs::remove_dir(mount.join(NAMESPACE)).ok();
        }
    }
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
