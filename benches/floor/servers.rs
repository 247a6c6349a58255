//! Who is measured: processes on one core, with all that they need.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::load::{Address, Target};
use crate::report::Cell;
use crate::support::fake_aws::FakeAws;
use crate::support::{aws_agent, free_port, resident};
use crate::{SERVER_CORE, SMCACHED, bare};

/// The sizes of the values that there are, in bytes.
pub(crate) const SIZES: [usize; 5] = [SMALL, 1 << 10, 4 << 10, 16 << 10, 64 << 10];

/// The size of which there may be many.
pub(crate) const SMALL: usize = 200;

/// Names the binary of AWS's agent, where it is to be driven too.
const AWS_AGENT: &str = "SMCACHED_BENCH_AWS_AGENT";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Unix,
}

impl Transport {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Unix => "Unix",
        }
    }
}

/// A server. Killed when dropped.
pub(crate) struct Server {
    pub(crate) name: &'static str,
    process: Child,
    tcp: SocketAddr,
    unix: Option<PathBuf>,
    /// What stands before the number of a value and its size in a path, and the headers after it.
    path: &'static str,
    headers: String,
    /// Of how many different values of [`SMALL`] bytes it can be asked.
    values: usize,
    /// Resident memory before anybody asked it anything, in bytes.
    pub(crate) resident_idle: u64,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    /// Where a cell's requests go, if this server has what they ask for.
    pub(crate) fn target(&self, cell: Cell) -> Option<Target> {
        if cell.values > self.values {
            return None;
        }
        let address = match cell.transport {
            Transport::Tcp => Address::Tcp(self.tcp),
            Transport::Unix => Address::Unix(self.unix.clone()?),
        };
        let request = |number| {
            let path = format!("{}/{number}/{}", self.path, cell.size);
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{}\r\n", self.headers).into_bytes()
        };
        Some(Target { address, requests: (0..cell.values).map(request).collect() })
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
        resident(self.process.id())
    }
}

/// All servers, and what they need. They end before that does.
pub(crate) struct Servers {
    all: Vec<Server>,
    directory: TempDir,
    /// The agent's Secrets Manager, where there is an agent.
    aws: Vec<(FakeAws, Runtime)>,
}

impl Servers {
    /// The daemon has as many `values` of [`SMALL`] bytes.
    pub(crate) fn start(values: usize) -> Self {
        let mut servers = Self { all: Vec::new(), directory: tempfile::tempdir().unwrap(), aws: Vec::new() };
        let trail = "[audit]\noutput = \"./audit.log\"\nmax_bytes = \"10MiB\"\nkeep = 1";
        servers.smcached("smcached", "", values);
        servers.smcached("with audit", trail, 1);
        servers.hyper();
        servers.nginx();
        servers.aws_agent();
        for server in &mut servers.all {
            let deadline = Instant::now() + Duration::from_secs(20);
            while std::net::TcpStream::connect(server.tcp).is_err() {
                assert!(Instant::now() < deadline, "{} does not listen", server.name);
                std::thread::sleep(Duration::from_millis(10));
            }
            server.resident_idle = server.resident();
        }
        servers
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Server> {
        self.all.iter()
    }

    /// A directory for one server.
    fn directory(&self, name: &str) -> PathBuf {
        let directory = self.directory.path().join(name.replace(' ', "-"));
        fs::create_dir(&directory).unwrap();
        directory
    }

    fn add(
        &mut self,
        name: &'static str,
        mut command: Command,
        port: u16,
        unix: Option<PathBuf>,
    ) -> &mut Server {
        let process = command.stderr(Stdio::null()).spawn().unwrap();
        let tcp = (Ipv4Addr::LOCALHOST, port).into();
        let (path, headers) = ("", String::new());
        self.all.push(Server { name, process, tcp, unix, path, headers, values: 1, resident_idle: 0 });
        self.all.last_mut().unwrap()
    }

    /// The daemon, with these lines more in its configuration.
    fn smcached(&mut self, name: &'static str, more: &str, values: usize) {
        let (directory, port) = (self.directory(name), free_port());
        let secret = |number, size| {
            format!("[[secret]]\nname = \"bench/{number}/{size}\"\nstring = \"{}\"\n", "x".repeat(size))
        };
        let secrets = SIZES.map(|size| secret(0, size)).concat();
        let many: String = (1..values).map(|number| secret(number, SMALL)).collect();
        fs::write(directory.join("secrets.toml"), secrets + &many).unwrap();
        let config = format!(
            "[source]\nkind = \"file\"\npath = \"secrets.toml\"\n[cache]\nttl = \"1h\"\n[refresh]\nrate = 10_000\n\
             rate_per_caller = 10_000\n[[listener]]\nunix = \"s.sock\"\n[[listener]]\ntcp = \"127.0.0.1:{port}\"\n\
             token = \"none\"\n[ops]\ntcp = \"off\"\n[log]\nlevel = \"warn\"\n{more}\n"
        );
        fs::write(directory.join("smcached.toml"), config).unwrap();
        let mut command = pinned(SMCACHED);
        command.args(["serve", "--config", "smcached.toml"]).current_dir(&directory);
        let server = self.add(name, command, port, Some(directory.join("s.sock")));
        (server.path, server.values) = ("/secret/bench", values);
    }

    fn hyper(&mut self) {
        let (directory, port) = (self.directory("hyper"), free_port());
        let unix = directory.join("s.sock");
        let mut command = pinned(std::env::current_exe().unwrap().to_str().unwrap());
        command.args([bare::MODE, &port.to_string()]).arg(&unix);
        // It looks at the size alone.
        self.add("bare hyper", command, port, Some(unix)).values = usize::MAX;
    }

    /// Files from memory, which is the nearest that it has.
    fn nginx(&mut self) {
        let is_there = Command::new("nginx").arg("-v").stderr(Stdio::null()).status().is_ok();
        if !is_there {
            println!("nginx is not installed, and not measured");
            return;
        }
        let (directory, port) = (self.directory("nginx"), free_port());
        fs::create_dir(directory.join("0")).unwrap();
        for size in SIZES {
            fs::write(directory.join(format!("0/{size}")), "x".repeat(size)).unwrap();
        }
        let place = directory.display();
        let config = format!(
            "daemon off; master_process off; worker_processes 1; user root; pid {place}/nginx.pid; error_log /dev/null;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; keepalive_requests 1000000000; sendfile on; open_file_cache max=10;\n\
             client_body_temp_path {place}/t1; proxy_temp_path {place}/t2; fastcgi_temp_path {place}/t3;\n\
             uwsgi_temp_path {place}/t4; scgi_temp_path {place}/t5; default_type text/plain;\n\
             server {{ listen 127.0.0.1:{port}; listen unix:{place}/s.sock; root {place};\n\
             add_header Cache-Control no-store; add_header Cache-Status 'smcached; hit; ttl=3599'; }} }}\n"
        );
        fs::write(directory.join("nginx.conf"), config).unwrap();
        let mut command = pinned("nginx");
        command.arg("-c").arg(directory.join("nginx.conf"));
        self.add("nginx", command, port, Some(directory.join("s.sock")));
    }

    /// AWS's agent, which has no Unix socket. Values are held for as long as it lets them be.
    fn aws_agent(&mut self) {
        let Ok(binary) = std::env::var(AWS_AGENT) else {
            println!("{AWS_AGENT} does not name the binary of AWS's agent, which is not measured");
            return;
        };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let aws = {
            let _inside = runtime.enter();
            FakeAws::start()
        };
        for size in SIZES {
            aws.put(&format!("bench/0/{size}"), "x".repeat(size).as_str());
        }
        let (directory, port) = (self.directory("agent"), free_port());
        let mut command = pinned(&binary);
        aws_agent::configure(&mut command, &directory, port, &aws.url(), "ttl_seconds = 3600");
        let server = self.add("AWS's agent", command, port, None);
        server.path = "/v1/bench";
        server.headers = format!("X-Aws-Parameters-Secrets-Token: {}\r\n", aws_agent::TOKEN);
        self.aws.push((aws, runtime));
    }
}

fn pinned(program: &str) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", SERVER_CORE, program]).stdout(Stdio::null());
    command
}
