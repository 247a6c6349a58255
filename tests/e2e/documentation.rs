//! What the documents show is what happens: their commands are run.

use std::fs;
use std::process::Command;

use crate::support::daemon::{Daemon, Setup};
use crate::support::{in_repository, python};

/// A daemon as in `config/local.toml`, but in a place of its own.
async fn local_daemon() -> Daemon {
    let secrets = fs::read_to_string(in_repository("config/local-secrets.toml")).unwrap();
    Setup::with_file(&secrets).start().await
}

/// A command of the documents, for that daemon.
fn adapted(command: &str, daemon: &Daemon) -> String {
    let path = |name: &str| daemon.path(name).display().to_string();
    command
        .replace("target/release/smcached", crate::SMCACHED)
        .replace("target/smcached.sock", &path("s.sock"))
        .replace("/run/smcached/smcached.sock", &path("s.sock"))
        .replace("target/smcached.token", &path("token"))
        .replace("/run/smcached/token", &path("token"))
        .replace("127.0.0.1:2773", &format!("127.0.0.1:{}", daemon.tcp_port()))
}

/// The code blocks of a document in this language.
fn blocks(document: &str, language: &str) -> Vec<String> {
    let text = fs::read_to_string(in_repository(document)).unwrap();
    let opening = format!("```{language}\n");
    let parts = text.split(&opening).skip(1);
    parts.map(|part| part.split("```").next().unwrap().to_owned()).collect()
}

/// Standard output of a script of the documents, run with the Python parts at hand.
fn run(script: &str, daemon: &Daemon) -> String {
    let path = format!("{}:/usr/bin:/bin", in_repository("target/python/bin").display());
    let mut command = Command::new("sh");
    command.args(["-c", &adapted(script, daemon)]).env_clear().env("PATH", path).current_dir(daemon.path(""));
    command.env("HOME", daemon.path("")).env("AWS_EC2_METADATA_DISABLED", "true");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{script}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs the exchanges of a document's `console` blocks, each after `prelude`; returns how many there are.
fn check_exchanges(document: &str, prelude: &str, daemon: &Daemon) -> usize {
    let blocks = blocks(document, "console").concat();
    let exchanges = blocks.split("$ ").skip(1).map(|exchange| exchange.split_once('\n').unwrap());
    let check = |(command, expected): (&str, &str)| {
        let output = run(&format!("{prelude}\n{command}"), daemon);
        assert_eq!(output.trim_end(), expected.trim_end(), "{document}: {command}");
    };
    exchanges.map(check).count()
}

#[tokio::test]
async fn the_commands_of_the_readme_print_what_it_says() {
    let daemon = local_daemon().await;
    assert_eq!(check_exchanges("README.md", "", &daemon), 4);
}

#[tokio::test]
async fn the_pages_of_clients_show_what_their_clients_get() {
    let daemon = local_daemon().await;
    assert_eq!(check_exchanges("docs/clients/curl.md", "", &daemon), 4);
    run(&blocks("docs/clients/curl.md", "sh").concat(), &daemon);
    assert_eq!(check_exchanges("docs/clients/agent.md", "", &daemon), 1);
    let variables = blocks("docs/clients/aws-cli.md", "sh").concat();
    assert_eq!(check_exchanges("docs/clients/aws-cli.md", &variables, &daemon), 1);
    for (document, expected) in
        [("docs/clients/python.md", "ada\n"), ("docs/clients/boto3.md", "the new token\n")]
    {
        let variables = blocks(document, "sh").concat();
        let program = blocks(document, "python").concat();
        let script = format!("{variables}\npython - <<'END'\n{program}\nEND\n");
        assert_eq!(run(&script, &daemon), expected, "{document}");
    }
}

#[tokio::test]
async fn the_answer_in_getting_started_is_the_real_one() {
    let daemon = local_daemon().await;
    let block = &blocks("docs/getting-started.md", "console")[0];
    let (command, expected) = block.strip_prefix("$ ").unwrap().split_once('\n').unwrap();
    let output =
        Command::new("sh").args(["-c", &format!("{} 2>/dev/null", adapted(command, &daemon))]).output();
    let output = String::from_utf8(output.unwrap().stdout).unwrap().replace("\r\n", "\n");
    assert_eq!(output.trim_end(), expected.trim_end());
}

#[tokio::test]
async fn the_python_of_getting_started_reads_a_secret() {
    let daemon = local_daemon().await;
    let code = blocks("docs/getting-started.md", "python").concat() + "print(password)\n";
    let output = Command::new("python3").args(["-c", &adapted(&code, &daemon)]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "correct horse battery staple\n", "{output:?}");
}

#[tokio::test]
async fn the_commands_on_exec_print_what_they_say() {
    let daemon = local_daemon().await;
    let block = &blocks("docs/clients/env.md", "console")[0];
    let exchanges: Vec<_> = block.split("$ ").skip(1).map(|text| text.split_once('\n').unwrap()).collect();
    assert_eq!(exchanges.len(), 2);
    for (command, expected) in exchanges {
        let command = command.replace("smcached exec", &format!("{} exec --socket s.sock", crate::SMCACHED));
        let output = Command::new("sh").args(["-c", &command]).current_dir(daemon.path("")).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected, "{command}");
    }
}

#[tokio::test]
async fn the_project_of_the_page_on_files_makes_the_files_that_it_names() {
    let secrets = fs::read_to_string(in_repository("config/local-secrets.toml")).unwrap();
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let project = blocks("docs/clients/files.md", "toml").concat();
    let project = project.replace("/run/secrets/app", &directory.path().display().to_string());
    let _daemon = Setup::with_file(&secrets).section(&project).start().await;
    let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
    assert!(read("team-a/db").starts_with("{\"username\""));
    assert_eq!([read("db/password"), read("old-token")], ["correct horse battery staple", "the old token"]);
}

/// Holds a task definition against the model that AWS's own clients have of ECS.
const TASK_DEFINITION: &str = "import botocore.session, botocore.validate, json, sys
model = botocore.session.get_session().get_service_model('ecs').operation_model('RegisterTaskDefinition')
report = botocore.validate.ParamValidator().validate(json.load(sys.stdin), model.input_shape)
print(report.generate_report(), end='')
";

#[test]
fn the_task_definitions_for_ecs_have_only_what_ecs_knows() {
    let report = |definition: &str| {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("definition.json"), definition).unwrap();
        let input = fs::File::open(home.path().join("definition.json")).unwrap();
        let mut command = python::program("python", "python", home.path());
        python::printed(&command.args(["-c", TASK_DEFINITION]).stdin(input).output().unwrap())
    };
    let definitions = blocks("docs/ecs.md", "json");
    assert_eq!(definitions.len(), 2);
    for definition in definitions {
        assert_eq!(report(&definition), "", "{definition}");
        let misspelt = definition.replace("mountPoints", "mountpoints");
        assert!(report(&misspelt).contains("mountpoints"), "what is wrong is found");
    }
}
