//! An nginx of a test's own, with the script that follows Defib: its own files, ports of loopback; gone with the test.

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
        let config = format!(
            "daemon off; user root; worker_processes 1; pid {home}/nginx.pid; error_log {home}/error.log;\n\
             events {{ worker_connections 256; }}\n\
             http {{\n\
             access_log off; client_body_temp_path {home}/body; proxy_temp_path {home}/proxy;\n\
             fastcgi_temp_path {home}/fastcgi; uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;\n\
             upstream kept {{ include {include}; }}\n\
             upstream plain {{ {plain} }}\n\
             server {{ listen {kept}; location / {{ proxy_pass http://kept; }} }}\n\
             server {{ listen {alone}; location / {{ proxy_pass http://plain; }} }}\n\
             }}\n",
            home = home.display(),
            include = include.display()
        );
        let file = home.join("nginx.conf");
        fs::write(&file, config).expect("written");
        let log = || fs::File::options().create(true).append(true).open(home.join("log")).expect("a log");
        let nginx = Command::new(PROGRAM)
            .arg("-p")
            .arg(home)
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log())
            .stderr(log())
            .spawn()
            .expect("nginx starts");
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
            .stdout(log())
            .stderr(log())
            .spawn()
            .expect("the script starts");
        Self { nginx, script, directory }
    }

    /// The upstream as the script has written it last.
    pub fn upstream(&self) -> String {
        fs::read_to_string(include(self.directory.path())).unwrap_or_default()
    }
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
