//! Who is measured: processes on one core, with all that they need.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::load::{Address, Target};
use crate::report::Cell;
use crate::support::free_ports;
use crate::{SERVER_CORE, SMCACHED, bare};

/// The sizes of the values that there are, in bytes.
pub(crate) const SIZES: [usize; 3] = [200, 4 << 10, 64 << 10];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Unix,
}

/// A server. Killed when dropped.
pub(crate) struct Server {
    pub(crate) name: &'static str,
    process: Child,
    tcp: SocketAddr,
    unix: PathBuf,
    /// The path of a value of this many bytes.
    path: fn(usize) -> String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    pub(crate) fn target(&self, cell: Cell) -> Target {
        let address = match cell.transport {
            Transport::Tcp => Address::Tcp(self.tcp),
            Transport::Unix => Address::Unix(self.unix.clone()),
        };
        let path = (self.path)(cell.size);
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes();
        Target { address, request }
    }

    /// The CPU time of all its threads so far.
    pub(crate) fn cpu(&self) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process.id())).unwrap();
        let nanoseconds = |task: fs::DirEntry| {
            let schedule = fs::read_to_string(task.path().join("schedstat")).ok()?;
            schedule.split(' ').next()?.parse::<u64>().ok()
        };
        Duration::from_nanos(tasks.flatten().filter_map(nanoseconds).sum())
    }

    /// Resident memory, in bytes.
    pub(crate) fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

/// All servers, and where their files are.
pub(crate) struct Servers {
    servers: Vec<Server>,
    _directory: TempDir,
}

impl Servers {
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ports: [u16; 4] = free_ports();
        let at = |name: &str| directory.path().join(name);
        let trail = "[audit]\noutput = \"./audit.log\"\nmax_bytes = \"10MiB\"\nkeep = 1";
        let mut servers = vec![
            smcached("smcached", &at("smcached"), ports[0], ""),
            smcached("with audit", &at("audited"), ports[1], trail),
            hyper(directory.path(), ports[2]),
        ];
        servers.extend(nginx(directory.path(), ports[3]));
        for server in &servers {
            let deadline = Instant::now() + Duration::from_secs(10);
            while std::net::TcpStream::connect(server.tcp).is_err() {
                assert!(Instant::now() < deadline, "{} does not listen", server.name);
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Self { servers, _directory: directory }
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Server> {
        self.servers.iter()
    }
}

fn pinned(program: &str) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", SERVER_CORE, program]).stdout(Stdio::null());
    command
}

/// The daemon, with a folder of its own and these lines more in its configuration.
fn smcached(name: &'static str, directory: &Path, port: u16, more: &str) -> Server {
    fs::create_dir(directory).unwrap();
    let secret = |size| format!("[[secret]]\nname = \"bench/{size}\"\nstring = \"{}\"\n", "x".repeat(size));
    fs::write(directory.join("secrets.toml"), SIZES.map(secret).concat()).unwrap();
    let config = format!(
        "[source]\nkind = \"file\"\npath = \"secrets.toml\"\n[cache]\nttl = \"1h\"\n[[listener]]\nunix = \"s.sock\"\n\
         [[listener]]\ntcp = \"127.0.0.1:{port}\"\ntoken = \"none\"\n[ops]\ntcp = \"off\"\n[log]\nlevel = \"warn\"\n{more}\n"
    );
    fs::write(directory.join("smcached.toml"), config).unwrap();
    let mut command = pinned(SMCACHED);
    command.args(["serve", "--config", "smcached.toml"]).current_dir(directory);
    started(name, command, port, directory.join("s.sock"), |size| format!("/secret/bench/{size}"))
}

fn hyper(directory: &Path, port: u16) -> Server {
    let unix = directory.join("bare.sock");
    let itself = std::env::current_exe().unwrap();
    let mut command = pinned(itself.to_str().unwrap());
    command.args([bare::MODE, &port.to_string()]).arg(&unix);
    started("bare hyper", command, port, unix, |size| format!("/{size}"))
}

fn started(
    name: &'static str,
    mut command: Command,
    port: u16,
    unix: PathBuf,
    path: fn(usize) -> String,
) -> Server {
    let process = command.stderr(Stdio::null()).spawn().unwrap();
    Server { name, process, tcp: (Ipv4Addr::LOCALHOST, port).into(), unix, path }
}

/// Files from memory, which is the nearest that it has.
fn nginx(directory: &Path, port: u16) -> Option<Server> {
    let is_there = Command::new("nginx").arg("-v").stderr(Stdio::null()).status().is_ok();
    if !is_there {
        println!("nginx is not installed, and not measured");
        return None;
    }
    for size in SIZES {
        fs::write(directory.join(size.to_string()), "x".repeat(size)).unwrap();
    }
    let place = directory.display();
    let config = format!(
        "daemon off; master_process off; worker_processes 1; user root; pid {place}/nginx.pid; error_log /dev/null;\n\
         events {{ worker_connections 4096; }}\n\
         http {{ access_log off; keepalive_requests 1000000000; sendfile on; open_file_cache max=10;\n\
         client_body_temp_path {place}/t1; proxy_temp_path {place}/t2; fastcgi_temp_path {place}/t3;\n\
         uwsgi_temp_path {place}/t4; scgi_temp_path {place}/t5; default_type text/plain;\n\
         server {{ listen 127.0.0.1:{port}; listen unix:{place}/nginx.sock; root {place};\n\
         add_header Cache-Control no-store; add_header Cache-Status 'smcached; hit; ttl=3599'; }} }}\n"
    );
    fs::write(directory.join("nginx.conf"), config).unwrap();
    let mut command = pinned("nginx");
    command.arg("-c").arg(directory.join("nginx.conf"));
    Some(started("nginx", command, port, directory.join("nginx.sock"), |size| format!("/{size}")))
}
