//! An nginx of a test's own: its own files, ports of loopback; gone with the test. Either with the script that follows Defib, or
//! in front of the agent.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::{defib::end, eventually};

/// Debian package nginx-light.
const PROGRAM: &str = "/usr/sbin/nginx";
/// Debian package curl.
const CURL: &str = "/usr/bin/curl";

/// See the module.
#[derive(Debug)]
pub struct Nginx {
    nginx: Child,
    script: Child,
    directory: tempfile::TempDir,
}

impl Nginx {
    /// What it needs; `None` when all is here.
    pub fn missing() -> Option<&'static str> {
        let here = [PROGRAM, CURL].into_iter().all(|program| Path::new(program).exists());
        (!here).then_some("needs nginx and curl (Debian packages nginx-light and curl)")
    }

    /// Starts one with two fronts to the same servers: the first one's upstream is kept by the script, which asks at `pool`
    /// for `NAME`, the second one's is plain.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(fronts: [SocketAddr; 2], servers: &[(&str, SocketAddr)], pool: SocketAddr) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let home = directory.path();
        let plain: String = servers.iter().map(|(_, address)| format!("server {address};")).collect();
        let [kept, alone] = fronts;
        let include = include(home);
        fs::write(&include, plain.replace(';', ";\n")).expect("written");
        let http = format!(
            "upstream kept {{ include {include}; }}\n\
             upstream plain {{ {plain} }}\n\
             server {{ listen {kept}; location / {{ proxy_pass http://kept; }} }}\n\
             server {{ listen {alone}; location / {{ proxy_pass http://plain; }} }}\n",
            include = include.display()
        );
        let (file, nginx) = (home.join("nginx.conf"), run(home, &http));
        for front in fronts {
            eventually("nginx to listen", || TcpStream::connect(front).ok());
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/nginx/defib-upstream");
        let script = Command::new("/bin/sh")
            .arg(script)
            .arg(include)
            .args(servers.iter().map(|(name, address)| format!("{address}=http://{pool}/pool/{name}")))
            .env("NGINX_COMMAND", format!("{PROGRAM} -p {} -c {}", home.display(), file.display()))
            .stdin(Stdio::null())
            .stdout(log(home))
            .stderr(log(home))
            .spawn()
            .expect("the script starts");
        Self { nginx, script, directory }
    }

    /// The upstream as the script has written it last.
    pub fn upstream(&self) -> String {
        fs::read_to_string(include(self.directory.path())).unwrap_or_default()
    }
}

/// An nginx in front of an agent, which has its pages below a prefix.
#[derive(Debug)]
pub struct Prefix {
    nginx: Child,
    directory: tempfile::TempDir,
}

impl Prefix {
    /// Starts one as the documentation of the pages has it.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(front: SocketAddr, prefix: &str, agent: SocketAddr) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let pages = include_str!("../../docs/pages.md");
        let location = pages.split("```nginx\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
        let location = location.replace("/defib/", prefix).replace("127.0.0.1:9669", &agent.to_string());
        let nginx = run(directory.path(), &format!("server {{ listen {front}; {location} }}\n"));
        eventually("nginx to listen", || TcpStream::connect(front).ok());
        Self { nginx, directory }
    }
}

impl Drop for Prefix {
    fn drop(&mut self) {
        end(&mut self.nginx);
        if std::thread::panicking() {
            println!("{}", fs::read_to_string(self.directory.path().join("error.log")).unwrap_or_default());
        }
    }
}

fn log(home: &Path) -> fs::File {
    fs::File::options().create(true).append(true).open(home.join("log")).expect("a log")
}

/// Starts nginx with all its files below `home`, and this in `http`.
fn run(home: &Path, http: &str) -> Child {
    let config = format!(
        "daemon off; user root; worker_processes 1; pid {home}/nginx.pid; error_log {home}/error.log;\n\
         events {{ worker_connections 256; }}\n\
         http {{\n\
         access_log off; client_body_temp_path {home}/body; proxy_temp_path {home}/proxy;\n\
         fastcgi_temp_path {home}/fastcgi; uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;\n\
         {http}\
         }}\n",
        home = home.display(),
    );
    let file = home.join("nginx.conf");
    fs::write(&file, config).expect("written");
    Command::new(PROGRAM)
        .arg("-p")
        .arg(home)
        .arg("-c")
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(log(home))
        .stderr(log(home))
        .spawn()
        .expect("nginx starts")
}

fn include(home: &Path) -> PathBuf {
    home.join("upstream.conf")
}

impl Drop for Nginx {
    fn drop(&mut self) {
        end(&mut self.script);
        end(&mut self.nginx);
        if std::thread::panicking() {
            for name in ["log", "error.log"] {
                println!("{}", fs::read_to_string(self.directory.path().join(name)).unwrap_or_default());
            }
        }
    }
}
