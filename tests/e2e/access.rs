//! Who may come in and read what: callers by secrets by ways in, each cell with its exact status, asked by real other
//! users of this system. The tests run as root and switch to them.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};
use std::time::Duration;

use crate::support::client::Connection;
use crate::support::daemon::{Daemon, Setup, smcached};
use crate::support::fake_aws::FakeAws;
use crate::support::{ARN, eventually, is_root};

/// What becomes of a request, whatever the way in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It gets the value.
    Read,
    /// The secret may not be read by this user here.
    Forbidden,
    /// The user may not come in.
    ShutOut,
    NoToken,
    WrongToken,
    ForeignHost,
    Forwarded,
    WebPage,
    /// The socket's file does not let the user connect.
    NoWayIn,
}

/// A way in, in the order of `statuses`.
const SURFACES: [&str; 9] =
    ["path", "arn", "wait", "json", "agent query", "agent path", "sdk", "sdk batch", "exec"];

/// The statuses of an end by every way in; `exec` has an exit code. 0 is no answer at all.
fn statuses(end: End) -> [u32; 9] {
    match end {
        End::Read => [200, 200, 200, 200, 200, 200, 200, 200, 0],
        End::Forbidden => [403, 403, 403, 403, 403, 403, 400, 200, 4],
        End::ShutOut => [403, 403, 403, 403, 403, 403, 400, 400, 4],
        End::NoToken | End::WrongToken => [401, 401, 401, 401, 403, 403, 400, 400, 4],
        End::ForeignHost | End::WebPage => [403, 403, 403, 403, 403, 403, 400, 400, 1],
        End::Forwarded => [400; 9],
        End::NoWayIn => [0, 0, 0, 0, 0, 0, 0, 0, 5],
    }
}

/// Who asks, and how.
struct Caller {
    name: &'static str,
    uid: u32,
    gid: u32,
    over: Over,
    headers: &'static [&'static str],
    /// For `team-a/db`, `team-b/db`, and `team-b/none`, which is not there.
    ends: [End; 3],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Over {
    /// The socket of team a.
    TeamA,
    /// A socket that only root and its group may connect to.
    Private,
    /// TCP, with this token.
    Tcp(Token),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Token {
    Right,
    Wrong,
    None,
}

const CALLERS: [Caller; 13] = {
    use End::{Forbidden, ForeignHost, Forwarded, NoToken, NoWayIn, Read, ShutOut, WebPage, WrongToken};
    const fn unix(name: &'static str, uid: u32, gid: u32, ends: [End; 3]) -> Caller {
        Caller { name, uid, gid, over: Over::TeamA, headers: &[], ends }
    }
    const fn tcp(
        name: &'static str,
        token: Token,
        headers: &'static [&'static str],
        ends: [End; 3],
    ) -> Caller {
        Caller { name, uid: 65534, gid: 65534, over: Over::Tcp(token), headers, ends }
    }
    [
        unix("a user that a policy names", 2001, 2001, [Read, Forbidden, Forbidden]),
        unix("a user whose group a policy names", 2002, 2100, [Read, Forbidden, Forbidden]),
        unix(
            "a user who may come in and that no policy names",
            2003,
            2003,
            [Forbidden, Forbidden, Forbidden],
        ),
        unix("a user who may not come in", 2004, 2100, [ShutOut; 3]),
        unix("root, that no policy names", 0, 0, [Forbidden, Forbidden, Forbidden]),
        Caller {
            headers: &["Host: evil.example"],
            ..unix("any host means the socket", 2001, 2001, [Read, Forbidden, Forbidden])
        },
        Caller {
            headers: &["X-Forwarded-For: 10.0.0.1"],
            ..unix("what a proxy passes on to the socket", 2001, 2001, [Forwarded; 3])
        },
        Caller { over: Over::Private, ..unix("whom the socket's mode keeps out", 2001, 2001, [NoWayIn; 3]) },
        tcp("the token", Token::Right, &[], [Read, Forbidden, Forbidden]),
        tcp("no token", Token::None, &[], [NoToken; 3]),
        tcp("a wrong token", Token::Wrong, &[], [WrongToken; 3]),
        tcp("a host that was rebound", Token::Right, &["Host: evil.example"], [ForeignHost; 3]),
        tcp("a web page", Token::Right, &["Origin: http://localhost"], [WebPage; 3]),
    ]
};

/// The policy of all: team a's secrets for user 2001 and group 2100, and for those on TCP with the token.
fn setup(aws: &FakeAws, tcp_port: &str) -> Setup {
    Setup::with_aws(&aws.url())
        .unix("mode = \"0666\"\nallow_uids = [0, 2001, 2002, 2003]")
        .tcp("token_file = \"token\"\nallow_secrets = [\"team-a/*\"]")
        .section("[[listener]]\nunix = \"private.sock\"\nmode = \"0660\"")
        .section("[[policy]]\nlistener = \"unix:s.sock\"\nuids = [2001]\nallow_secrets = [\"team-a/*\"]")
        .section(&format!("[[policy]]\ngids = [2100]\nallow_secrets = [\"{ARN}team-a/*\"]"))
        .section(&format!("[[policy]]\nlistener = \"tcp:127.0.0.1:{tcp_port}\"\nallow_secrets = [\"*\"]"))
}

struct Rig {
    aws: FakeAws,
    daemon: Daemon,
}

impl Rig {
    async fn new() -> Self {
        let aws = FakeAws::start();
        aws.put("team-a/db", "the value of team a");
        aws.put("team-b/db", "the value of team b");
        let daemon = setup(&aws, crate::support::daemon::TCP_PORT).start().await;
        // Other users reach the sockets, and no more than their modes allow.
        fs::set_permissions(daemon.path(""), Permissions::from_mode(0o755)).unwrap();
        Self { aws, daemon }
    }

    /// The status of one cell, and what came with it.
    fn ask(&self, caller: &Caller, surface: &str, name: &str) -> (u32, Vec<u8>) {
        let arn = format!("{ARN}{name}-AbCdEf");
        let target = match surface {
            "path" => format!("/secret/{name}"),
            "arn" => format!("/secret/{}", arn.replacen("secret:", "secret:/", 1)),
            "wait" => format!("/secret/{name}?wait=1ms"),
            "json" => format!("/secret/{name}?version_stage=AWSCURRENT"),
            "agent query" => format!("/secretsmanager/get?secretId={name}"),
            "agent path" => format!("/v1/{arn}"),
            "exec" => return self.exec(caller, name),
            _ => "/".to_owned(),
        };
        let mut curl = self.curl(caller);
        match surface {
            "json" => _ = curl.args(["-H", "Accept: application/json"]),
            "sdk" => _ = sdk(&mut curl, "GetSecretValue", &format!(r#"{{"SecretId":"{name}"}}"#)),
            "sdk batch" => {
                sdk(&mut curl, "BatchGetSecretValue", &format!(r#"{{"SecretIdList":["{arn}"]}}"#));
            }
            _ => {}
        }
        let output =
            curl.arg(format!("http://127.0.0.1:{}{target}", self.daemon.tcp_port())).output().unwrap();
        split_status(output)
    }

    fn curl(&self, caller: &Caller) -> Command {
        let mut curl = Command::new("curl");
        curl.uid(caller.uid).gid(caller.gid).current_dir("/");
        curl.args(["--silent", "--globoff", "--max-time", "20", "--write-out", "%{http_code}"]);
        for header in caller.headers {
            curl.args(["-H", header]);
        }
        match caller.over {
            Over::TeamA => _ = curl.arg("--unix-socket").arg(self.daemon.path("s.sock")),
            Over::Private => _ = curl.arg("--unix-socket").arg(self.daemon.path("private.sock")),
            Over::Tcp(Token::None) => {}
            Over::Tcp(token) => {
                let token = if token == Token::Right { self.daemon.token() } else { "guess".to_owned() };
                curl.args(["-H", &format!("X-Aws-Parameters-Secrets-Token: {token}")]);
            }
        }
        curl
    }

    /// What a command started by `exec` sees. It sends no headers but the token.
    fn exec(&self, caller: &Caller, name: &str) -> (u32, Vec<u8>) {
        let mut exec = smcached(std::path::Path::new("/"));
        exec.uid(caller.uid).gid(caller.gid).arg("exec");
        match caller.over {
            Over::TeamA => _ = exec.arg("--socket").arg(self.daemon.path("s.sock")),
            Over::Private => _ = exec.arg("--socket").arg(self.daemon.path("private.sock")),
            Over::Tcp(token) => {
                exec.env("SMCACHED_ADDRESS", format!("http://127.0.0.1:{}", self.daemon.tcp_port()));
                match token {
                    Token::Right => _ = exec.env("SMCACHED_TOKEN", self.daemon.token()),
                    Token::Wrong => _ = exec.env("SMCACHED_TOKEN", "guess"),
                    Token::None => {}
                }
            }
        }
        let output =
            exec.args(["--env", &format!("VALUE={name}"), "--", "printenv", "VALUE"]).output().unwrap();
        (u32::try_from(output.status.code().unwrap()).unwrap(), output.stdout)
    }
}

fn sdk<'a>(curl: &'a mut Command, action: &str, body: &str) -> &'a mut Command {
    curl.args([
        "-H",
        &format!("X-Amz-Target: secretsmanager.{action}"),
        "-H",
        "Content-Type: application/x-amz-json-1.1",
    ])
    .args(["--data-binary", body])
}

/// curl's `--write-out` follows the body.
fn split_status(output: Output) -> (u32, Vec<u8>) {
    let mut body = output.stdout;
    let status = body.split_off(body.len() - 3);
    (std::str::from_utf8(&status).unwrap().parse().unwrap(), body)
}

fn contains(body: &[u8], text: &str) -> bool {
    body.windows(text.len()).any(|window| window == text.as_bytes())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_by_secrets_by_ways_in() {
    if !is_root("ask as other users") {
        return;
    }
    let rig = Rig::new().await;
    let mut cells = 0;
    for caller in &CALLERS {
        for (name, end) in ["team-a/db", "team-b/db", "team-b/none"].into_iter().zip(caller.ends) {
            for (surface, expected) in SURFACES.into_iter().zip(statuses(end)) {
                if surface == "exec" && !caller.headers.is_empty() {
                    continue;
                }
                let (status, body) = rig.ask(caller, surface, name);
                let cell = format!("{}, {name}, {surface}: {}", caller.name, String::from_utf8_lossy(&body));
                assert_eq!(status, expected, "{cell}");
                assert_eq!(contains(&body, "the value of team a"), end == End::Read, "{cell}");
                assert!(!contains(&body, "the value of team b"), "{cell}");
                cells += 1;
            }
        }
    }
    assert_eq!(cells, 13 * 3 * 9 - 4 * 3);
    let asked = rig.aws.log().iter().filter(|call| call.ids.iter().any(|id| id.contains("team-b"))).count();
    assert_eq!(asked, 0, "AWS is not asked for what nobody may read");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_learns_whether_a_secret_exists_that_they_may_not_read() {
    if !is_root("ask as other users") {
        return;
    }
    let rig = Rig::new().await;
    let caller = &CALLERS[0];
    for surface in SURFACES {
        let named = |name: &str| {
            let (status, body) = rig.ask(caller, surface, name);
            (status, String::from_utf8(body).unwrap().replace(name, "<name>"))
        };
        assert_eq!(named("team-b/db"), named("team-b/none"), "{surface}");
    }
}

/// A name with a policy by account is decided when its account is known, and not before.
#[tokio::test]
async fn what_depends_on_the_account_is_decided_by_the_answer() {
    let aws = FakeAws::start();
    aws.put("team-a/db", "the value of team a");
    let daemon = |account: &str| {
        let pattern = format!("arn:aws:secretsmanager:us-west-2:{account}:secret:team-a/*");
        Setup::with_aws(&aws.url()).unix(&format!("allow_secrets = [\"{pattern}\"]"))
    };
    let (ours, theirs) = (daemon("123456789012").start().await, daemon("210987654321").start().await);
    for _ in 0..2 {
        assert_eq!(ours.get("/secret/team-a/db").await.text(), "the value of team a");
        let refused = theirs.get("/secret/team-a/db").await;
        assert_eq!((refused.status, refused.code().as_str()), (403, "caller_not_allowed"));
    }
    let own_arn = theirs.get(&format!("/secret/{ARN}/team-a/db-AbCdEf")).await;
    assert_eq!(own_arn.code(), "caller_not_allowed");
}

#[tokio::test]
async fn a_project_writes_nothing_that_its_owner_may_not_read() {
    if !is_root("ask as other users") {
        return;
    }
    let secrets = "[[secret]]\nname = \"team-a/db\"\nstring = \"the value of team a\"\n";
    let directory = tempfile::tempdir().unwrap();
    let place = |uid: u32| directory.path().join(uid.to_string());
    let setup = |uid: u32| {
        Setup::with_file(secrets)
            .section("[[policy]]\nuids = [2001]\nallow_secrets = [\"team-a/*\"]")
            .section(&format!(
                "[[project]]\ndir = \"{}\"\nsecrets = [\"team-a/db\"]\nowner = \"{uid}\"",
                place(uid).display()
            ))
    };
    let _allowed = setup(2001).start().await;
    assert_eq!(fs::read_to_string(place(2001).join("team-a/db")).unwrap(), "the value of team a");
    let mut refused = setup(2002).launch();
    assert_eq!(refused.exit().await.code(), Some(2));
    assert!(
        refused.log().contains("would be written for user 2002") && refused.log().contains("no [[policy]]")
    );
    assert!(!place(2002).exists());
}

/// As in the guide for nodes with several tenants.
#[tokio::test]
async fn each_tenant_has_a_socket_in_a_directory_of_its_own() {
    if !is_root("ask as other users") {
        return;
    }
    let secret = |team: &str| format!("[[secret]]\nname = \"{team}/db\"\nstring = \"the value of {team}\"\n");
    let listener = |team: &str, mode: &str| {
        format!(
            "[[listener]]\nunix = \"ns/{team}/s.sock\"\nmode = \"0666\"\ngroup = \"2100\"\ndirectory_mode = \"{mode}\"\n\
             allow_secrets = [\"{team}/*\"]"
        )
    };
    let daemon = Setup::with_file(&(secret("team-a") + &secret("team-b")))
        .section(&listener("team-a", "0755"))
        .section(&listener("team-b", "0750"))
        .start()
        .await;
    fs::set_permissions(daemon.path(""), Permissions::from_mode(0o755)).unwrap();
    let mode = |path: &str| fs::metadata(daemon.path(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!([mode("ns"), mode("ns/team-a"), mode("ns/team-b")], [0o755, 0o755, 0o750]);
    let read = |gid: u32, socket: &str, team: &str| {
        let mut curl = Command::new("curl");
        curl.uid(2001).gid(gid).current_dir("/").args([
            "--silent",
            "--write-out",
            "%{http_code}",
            "--unix-socket",
        ]);
        curl.arg(daemon.path(&format!("ns/{socket}/s.sock")))
            .arg(format!("http://localhost/secret/{team}/db"));
        split_status(curl.output().unwrap()).0
    };
    assert_eq!([read(2001, "team-a", "team-a"), read(2001, "team-a", "team-b")], [200, 403]);
    assert_eq!([read(2100, "team-b", "team-b"), read(2100, "team-b", "team-a")], [200, 403]);
    assert_eq!(read(2001, "team-b", "team-b"), 0, "the directory is for its group");
}

#[tokio::test]
async fn a_policy_takes_effect_with_a_reload() {
    let daemon = Setup::with_file("[[secret]]\nname = \"team-a/db\"\nstring = \"the value of team a\"\n")
        .start()
        .await;
    assert_eq!(daemon.get("/secret/team-a/db").await.status, 200);
    daemon.rewrite_config(|text| format!("{text}\n[[policy]]\nallow_secrets = [\"team-b/*\"]\n"));
    daemon.signal("HUP");
    daemon.logs("the configuration was reloaded").await;
    assert_eq!(daemon.get("/secret/team-a/db").await.code(), "caller_not_allowed");
}

/// A reader who waits, and knows what is held; gives its connection.
async fn waiting(daemon: &Daemon, path: &str, etag: &str) -> Connection {
    let mut connection = Connection::open(&daemon.unix()).await.unwrap();
    let request = format!("GET {path}?wait=5m HTTP/1.1\r\nHost: x\r\nIf-None-Match: {etag}\r\n\r\n");
    connection.send(request.as_bytes()).await.unwrap();
    // Who comes later is answered later: now it waits.
    assert_eq!(daemon.get("/ping").await.status, 200);
    connection
}

#[tokio::test]
async fn who_waited_is_judged_by_the_policy_of_the_moment() {
    let secret = |value: &str| format!("[[secret]]\nname = \"team-a/db\"\nstring = \"{value}\"\n");
    let daemon = Setup::with_file(&secret("the value before")).cache("ttl = \"1s\"").start().await;
    let etag = daemon.get("/secret/team-a/db").await.header("etag").to_owned();
    let mut connection = waiting(&daemon, "/secret/team-a/db", &etag).await;
    daemon.rewrite_config(|text| format!("{text}\n[[policy]]\nallow_secrets = [\"team-b/*\"]\n"));
    daemon.signal("HUP");
    daemon.logs("the configuration was reloaded").await;
    fs::write(daemon.path("secrets.toml"), secret("the value after")).unwrap();
    let answer = connection.answer(false).await.unwrap().unwrap();
    assert_eq!((answer.status, answer.code().as_str()), (403, "caller_not_allowed"));
}

#[tokio::test]
async fn nobody_waits_for_what_they_may_not_read() {
    let aws = FakeAws::start();
    aws.put("team-a/db", "the value of team a");
    let theirs = "arn:aws:secretsmanager:us-west-2:210987654321:secret:*";
    let daemon = Setup::with_aws(&aws.url()).unix(&format!("allow_secrets = [\"{theirs}\"]")).start().await;
    let answer = waiting(&daemon, "/secret/team-a/db", "*").await.answer(false).await.unwrap().unwrap();
    assert_eq!((answer.status, answer.code().as_str()), (403, "caller_not_allowed"));
}

#[tokio::test]
async fn heads_that_drip_in_and_answers_that_nobody_reads_are_cut_off() {
    let secrets = format!("[[secret]]\nname = \"a/b\"\nstring = \"{}\"\n", "x".repeat(60_000));
    let timeouts = "[server]\nheader_timeout = \"300ms\"\nwrite_timeout = \"400ms\"\nidle_timeout = \"1h\"";
    let daemon = Setup::with_file(&secrets).section(timeouts).start().await;
    let mut idle = Connection::open(&daemon.unix()).await.unwrap();
    assert_eq!(idle.get("/secret/a/b", &[]).await.unwrap().status, 200);
    let mut drip = Connection::open(&daemon.unix()).await.unwrap();
    drip.send(b"GET /secret/a/b HTTP/1.1\r\nHo").await.unwrap();
    assert!(drip.closes_within(Duration::from_secs(10)).await);
    // More than the kernel holds for a peer.
    let mut deaf = Connection::open(&daemon.unix()).await.unwrap();
    deaf.send("GET /secret/a/b HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100).as_bytes()).await.unwrap();
    let open = "smcached_http_connections{listener=\"unix:s.sock\"}";
    eventually("the deaf one is cut off", Duration::from_secs(10), async || daemon.metric(open).await == 1)
        .await;
    assert_eq!(idle.get("/secret/a/b", &[]).await.unwrap().status, 200, "who rests is left alone");
}

#[tokio::test]
async fn a_user_with_too_many_connections_is_told_and_others_are_not() {
    if !is_root("ask as other users") {
        return;
    }
    let secrets = "[[secret]]\nname = \"a/b\"\nstring = \"the value of a\"\n";
    let setup =
        Setup::with_file(secrets).unix("mode = \"0666\"").section("[server]\nmax_connections_per_uid = 3");
    let daemon = setup.start().await;
    fs::set_permissions(daemon.path(""), Permissions::from_mode(0o755)).unwrap();
    let mut mine = Vec::new();
    for _ in 0..3 {
        let mut connection = Connection::open(&daemon.unix()).await.unwrap();
        assert_eq!(connection.get("/secret/a/b", &[]).await.unwrap().status, 200);
        mine.push(connection);
    }
    let mut fourth = Connection::open(&daemon.unix()).await.unwrap();
    let refusal = fourth.answer(false).await.unwrap().unwrap();
    assert_eq!((refusal.status, refusal.code().as_str()), (503, "too_many_connections"));
    assert!(fourth.closes_within(Duration::from_secs(5)).await);
    let mut other = Command::new("curl");
    other
        .uid(2001)
        .gid(2001)
        .current_dir("/")
        .arg("--silent")
        .arg("--unix-socket")
        .arg(daemon.path("s.sock"));
    let other = other.arg("http://localhost/secret/a/b").output().unwrap();
    assert_eq!(other.stdout, b"the value of a");
    mine.pop();
    eventually("there is room again", Duration::from_secs(5), async || {
        let Ok(mut again) = Connection::open(&daemon.unix()).await else { return false };
        again.get("/secret/a/b", &[]).await.is_ok_and(|answer| answer.status == 200)
    })
    .await;
    let label = "smcached_rejected_total{listener=\"unix:s.sock\",reason=\"connections\"}";
    assert!(daemon.metric(label).await >= 1);
}

#[tokio::test]
async fn readers_who_wait_leave_room_for_those_who_do_not() {
    let secrets = "[[secret]]\nname = \"a/b\"\nstring = \"the value of a\"\n";
    let daemon = Setup::with_file(secrets).section("[server]\nmax_waiting = 2").start().await;
    let etag = daemon.get("/secret/a/b").await.header("etag").to_owned();
    let both = [waiting(&daemon, "/secret/a/b", &etag).await, waiting(&daemon, "/secret/a/b", &etag).await];
    let known = [("If-None-Match", etag.as_str())];
    let wait = async || daemon.get_with("/secret/a/b?wait=1s", &known).await;
    eventually("two wait", Duration::from_secs(5), async || wait().await.status == 503).await;
    let third = wait().await;
    assert_eq!(third.code(), "too_many_waiting");
    assert!(!third.header("retry-after").is_empty());
    assert_eq!(daemon.get("/secret/a/b").await.status, 200);
    drop(both);
    eventually("they have left", Duration::from_secs(5), async || wait().await.status == 304).await;
}
