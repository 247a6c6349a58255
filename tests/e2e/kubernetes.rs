//! The chart, rendered by Helm itself and held against Kubernetes' schemas; its configuration in a daemon.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::client::{self, Address};
use crate::support::daemon::{IN_A_NETWORK_OF_ITS_OWN, Setup, smcached};
use crate::support::fake_aws::FakeAws;
use crate::support::{in_repository, is_root, python};

const CHART: &str = "config/kubernetes/smcached";

/// The oldest Kubernetes that the chart is for, and the newest whose schemas there are.
const VERSIONS: [&str; 2] = ["1.29", "1.37"];

/// The sets of values in the chart's `ci/`, and the kinds that each makes.
const SETS: [(&str, &[&str]); 5] = [
    ("minimal", &["ConfigMap", "DaemonSet", "ServiceAccount"]),
    ("tenants", &["ConfigMap", "DaemonSet", "ServiceAccount"]),
    ("sidecar", &["ConfigMap", "ServiceAccount", "PodTemplate"]),
    ("flyte", &["ConfigMap", "DaemonSet", "PodTemplate", "PodTemplate", "ServiceAccount"]),
    (
        "everything",
        &["ConfigMap", "DaemonSet", "PodTemplate", "NetworkPolicy", "PodMonitor", "ServiceAccount"],
    ),
];

/// Whether there is a Helm for this machine; if not, says so.
fn has_helm() -> bool {
    let has_helm = cfg!(target_arch = "x86_64");
    if !has_helm {
        // Past the test's captured output: nothing is left out in silence.
        let _ =
            writeln!(std::io::stderr(), "NOT CHECKED: there is no Helm to render the chart on this machine");
    }
    has_helm
}

/// Runs `tests/support/clients/chart.py`.
fn chart(arguments: &[&str], input: &str) -> Output {
    let home = tempfile::tempdir().unwrap();
    python::fed(python::script("kubernetes", "chart.py", home.path()).args(arguments), input)
}

/// The same for values of the chart.
fn with_values(action: &str, values: &str, more: &[&str]) -> Output {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), values).unwrap();
    let (chart_path, path) = (in_repository(CHART).display().to_string(), file.path().display().to_string());
    chart(&[&[action, &chart_path, &path], more].concat(), "")
}

/// What Helm makes of values: `manifests` and `notes`.
fn rendered(values: &str) -> Value {
    serde_json::from_str(&python::printed(&with_values("render", values, &[]))).unwrap()
}

/// The manifests of one of the [`SETS`].
fn manifests(set: &str) -> Vec<Value> {
    rendered(&values_of(set))["manifests"].as_array().unwrap().clone()
}

fn values_of(set: &str) -> String {
    fs::read_to_string(in_repository(&format!("{CHART}/ci/{set}-values.yaml"))).unwrap()
}

/// What the schemas of a version say of a list of manifests: errors, and kinds that they do not know.
fn validated(manifests: &str, version: &str) -> (Vec<String>, Vec<String>) {
    let output = chart(&["validate", version], manifests);
    let found: Value = serde_json::from_str(&python::printed(&output)).unwrap();
    let texts = |key: &str| serde_json::from_value(found[key].clone()).unwrap();
    (texts("errors"), texts("unknown"))
}

fn of_kind<'a>(manifests: &'a [Value], kind: &str) -> &'a Value {
    manifests.iter().find(|manifest| manifest["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
}

/// `smcached.toml` of a rendering.
fn configuration(manifests: &[Value]) -> &str {
    of_kind(manifests, "ConfigMap")["data"]["smcached.toml"].as_str().unwrap()
}

/// The container of the daemon.
fn container(manifests: &[Value]) -> Value {
    let specs = manifests.iter().flat_map(|it| [&it["spec"]["template"]["spec"], &it["template"]["spec"]]);
    let lists = specs.flat_map(|spec| [&spec["initContainers"], &spec["containers"]]);
    let mut containers = lists.filter_map(Value::as_array).flatten();
    containers.find(|container| container["name"] == "smcached").unwrap().clone()
}

#[test]
fn kubernetes_accepts_what_each_set_of_values_makes() {
    if !has_helm() {
        return;
    }
    for (set, kinds) in SETS {
        let manifests = manifests(set);
        let made: Vec<&str> = manifests.iter().map(|manifest| manifest["kind"].as_str().unwrap()).collect();
        let sorted = |kinds: &[&str]| {
            let mut kinds: Vec<String> = kinds.iter().map(|kind| (*kind).to_owned()).collect();
            kinds.sort();
            kinds
        };
        assert_eq!(sorted(&made), sorted(kinds), "{set}");
        for version in VERSIONS {
            let (errors, unknown) = validated(&json!(manifests).to_string(), version);
            assert!(errors.is_empty(), "{set}, Kubernetes {version}: {errors:#?}");
            // The Prometheus Operator's own kind: see below.
            let own: Vec<&str> = kinds.iter().filter(|kind| **kind == "PodMonitor").copied().collect();
            assert_eq!(unknown, own, "{set}, Kubernetes {version}");
        }
        assert_eq!(python::printed(&with_values("lint", &values_of(set), &[])).trim(), "[]", "{set}");
    }
}

#[test]
fn a_manifest_that_kubernetes_would_refuse_is_found() {
    if !has_helm() {
        return;
    }
    let good = of_kind(&manifests("minimal"), "DaemonSet").clone();
    let pod = "/spec/template/spec";
    let container = format!("{pod}/containers/0");
    let wrong = [
        (pod.to_owned(), "hostPid", Some(json!(true))),
        (format!("{container}/ports/0"), "containerPort", Some(json!("ops"))),
        (format!("{container}/livenessProbe"), "httpget", Some(json!({}))),
        ("/spec".to_owned(), "selector", None),
    ];
    for (place, key, value) in wrong {
        let mut manifest = good.clone();
        let object = manifest.pointer_mut(&place).unwrap().as_object_mut().unwrap();
        match value {
            Some(value) => object.insert(key.to_owned(), value),
            None => object.remove(key),
        };
        let (errors, _) = validated(&json!([manifest]).to_string(), VERSIONS[0]);
        assert!(errors.len() == 1 && errors[0].contains(key), "{key}: {errors:?}");
    }
}

#[test]
fn the_operators_kind_and_the_network_policy_select_the_pods_and_port_that_there_are() {
    if !has_helm() {
        return;
    }
    let manifests = manifests("everything");
    let labels = &of_kind(&manifests, "DaemonSet")["spec"]["template"]["metadata"]["labels"];
    let port = &container(&manifests)["ports"][0]["name"];
    let monitor = &of_kind(&manifests, "PodMonitor")["spec"];
    let policy = &of_kind(&manifests, "NetworkPolicy")["spec"];
    assert_eq!(&monitor["podMetricsEndpoints"][0]["port"], port);
    assert_eq!(&policy["ingress"][0]["ports"][0]["port"], port);
    for selector in [&monitor["selector"]["matchLabels"], &policy["podSelector"]["matchLabels"]] {
        let selector = selector.as_object().unwrap();
        assert!(!selector.is_empty());
        assert!(selector.iter().all(|(key, value)| labels[key] == *value), "{selector:?} {labels}");
    }
    // What the Prometheus Operator documents, as far as the chart uses it.
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<String>>();
    assert_eq!(keys(monitor), ["podMetricsEndpoints", "selector"].map(str::to_owned).into());
    let known = ["interval", "path", "port", "relabelings"].map(str::to_owned);
    assert_eq!(keys(&monitor["podMetricsEndpoints"][0]), known.into());
}

#[test]
fn the_configuration_of_each_set_is_one_that_the_daemon_takes() {
    if !has_helm() {
        return;
    }
    for (set, _) in SETS {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("smcached.toml"), configuration(&manifests(set))).unwrap();
        let output =
            smcached(directory.path()).args(["check", "--config", "smcached.toml"]).output().unwrap();
        let effective = python::printed(&output);
        assert!(effective.contains("reload = \"watch\""), "{set}: {effective}");
    }
}

#[tokio::test]
async fn each_tenant_reads_its_own_secrets_and_the_probes_ask_pages_that_answer() {
    if !has_helm() {
        return;
    }
    let manifests = manifests("tenants");
    let configuration = configuration(&manifests);
    let listeners = &configuration[configuration.find("[[listener]]").unwrap()..];
    let secrets = "[[secret]]\nname = \"team-a/db\"\nstring = \"ay\"\n\
                   [[secret]]\nname = \"team-b/db\"\nstring = \"bee\"\n";
    let daemon = Setup::with_file(secrets).section(&listeners.replace("/run/smcached/", "")).start().await;
    for (tenant, own, other) in
        [("team-a", ("team-a", "ay"), "team-b"), ("team-b", ("team-b", "bee"), "team-a")]
    {
        let socket = Address::Unix(daemon.path(&format!("ns/{tenant}/smcached.sock")));
        let answer = client::get(&socket, &format!("/secret/{}/db", own.0), &[]).await;
        assert_eq!((answer.status, answer.text()), (200, own.1));
        let answer = client::get(&socket, &format!("/secret/{other}/db"), &[]).await;
        assert_eq!((answer.status, answer.code().as_str()), (403, "caller_not_allowed"));
    }
    let container = container(&manifests);
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let path = container[probe]["httpGet"]["path"].as_str().unwrap();
        assert_eq!(daemon.ops_page(path).await.status, 200, "{probe}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_fails_no_read_and_leaves_the_old_pod_alive_until_it_is_told() {
    if !has_helm() || !is_root("give a process a network of its own") {
        return;
    }
    let manifests = manifests("tenants");
    let strategy = &of_kind(&manifests, "DaemonSet")["spec"]["updateStrategy"];
    assert_eq!(strategy["rollingUpdate"], json!({ "maxSurge": 1, "maxUnavailable": 0 }));
    let configuration = configuration(&manifests);
    // A path of the node, which both pods have.
    let node = tempfile::tempdir().unwrap();
    let sections = configuration[configuration.find("[process]").unwrap()..]
        .replace("/run/smcached-takeover", &node.path().display().to_string())
        .replace("/run/smcached/", "");
    let aws = FakeAws::start();
    aws.put("team-a/db", "ay");
    let mut daemon = Setup::with_aws(&aws.url()).section(&sections).start().await;
    let socket = Address::Unix(daemon.path("ns/team-a/smcached.sock"));
    let read = async || {
        let answer = client::get(&socket, "/secret/team-a/db", &[]).await;
        assert_eq!((answer.status, answer.text()), (200, "ay"));
    };
    read().await;
    let calls = aws.calls();
    let mut old = daemon.replace(&IN_A_NETWORK_OF_ITS_OWN);
    while !daemon.log().contains("this process has taken over") {
        read().await;
    }
    old.logs("waiting to be told to end").await;
    read().await;
    // The old pod's network is the test's. The kubelet must not start it again, and Kubernetes may end it.
    assert_eq!(daemon.ops_page("/livez").await.status, 200);
    assert_eq!(daemon.ops_page("/readyz").await.status, 200, "else it would be ended before minReadySeconds");
    old.signal("TERM");
    assert_eq!(old.exit().await.code(), Some(0));
    read().await;
    assert_eq!(aws.calls(), calls);
}

#[test]
fn a_release_takes_over_from_itself_and_from_no_other() {
    if !has_helm() {
        return;
    }
    let place = |release: &str| {
        let output = with_values("render", &values_of("minimal"), &[release]);
        let rendered: Value = serde_json::from_str(&python::printed(&output)).unwrap();
        let configuration = configuration(rendered["manifests"].as_array().unwrap()).to_owned();
        configuration.lines().find(|line| line.starts_with("takeover = ")).unwrap().to_owned()
    };
    assert_eq!(place("smcached"), place("smcached"));
    assert_ne!(place("smcached"), place("other"));
}

#[test]
fn the_daemons_container_has_no_privilege() {
    if !has_helm() {
        return;
    }
    for (set, _) in SETS {
        let container = container(&manifests(set));
        let expected = json!({
            "runAsNonRoot": true,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        });
        assert_eq!(container["securityContext"], expected, "{set}");
        assert!(container["resources"]["limits"]["memory"].is_string(), "{set}");
        let restart = if set == "sidecar" { json!("Always") } else { json!(null) };
        assert_eq!(container["restartPolicy"], restart, "{set}");
    }
}

#[test]
fn other_tenants_need_other_pods_and_another_ttl_does_not() {
    if !has_helm() {
        return;
    }
    let pods = |more: &str| {
        let values = format!("{}\n{more}", values_of("minimal"));
        let manifests = rendered(&values)["manifests"].as_array().unwrap().clone();
        of_kind(&manifests, "DaemonSet")["spec"]["template"].clone()
    };
    assert_eq!(pods(""), pods("config: '[cache]\n\n  ttl = \"1m\"'"));
    assert_ne!(pods(""), pods("tenants: [{name: team-a, allowSecrets: [\"team-a/*\"]}]"));
}

#[test]
fn bad_values_are_refused_by_an_error_that_names_them() {
    if !has_helm() {
        return;
    }
    let bad = [
        ("imag: {}", "'imag' not allowed"),
        ("mode: pod", "'/mode': value must be one of 'daemonset', 'sidecar'"),
        ("image: {pullPolicy: Sometimes}", "/image/pullPolicy"),
        ("tenants: [{name: team-a}]", "'/tenants/0': missing property 'allowSecrets'"),
        ("tenants: [{name: ../a, allowSecrets: [x]}]", "/tenants/0/name"),
        ("tenants: [{name: a, allowSecrets: [x]}, {name: a, allowSecrets: [y]}]", "tenants: two are named a"),
        ("updateStrategy: {rollingUpdate: {maxSurge: -1}}", "/updateStrategy/rollingUpdate/maxSurge"),
        (
            "updateStrategy: {rollingUpdate: {maxUnavailable: 1}}",
            "one of maxSurge and maxUnavailable must be 0",
        ),
        ("updateStrategy: {rollingUpdate: {maxSurge: 0}}", "one of maxSurge and maxUnavailable must be 0"),
        ("socketMode: 666", "'/socketMode': got number, want string"),
        ("ops: {port: 80}", "/ops/port"),
        ("config: '[[listener]]'", "config: [[listener]] is written by the chart"),
        ("config: '[process]'", "config: [process] is written by the chart"),
        ("config: '[ \"process\" ]'", "config: [process] is written by the chart"),
        ("config: 'process = {after_takeover = \"exit\"}'", "config: [process] is written by the chart"),
        ("config: 'process .user = \"root\"'", "config: [process] is written by the chart"),
        ("config: 'reload = \"signal\"'", "config: reload is written by the chart"),
        ("config: '[ops]'", "config: [ops] is written by the chart"),
        ("flyte: {enabled: true}", "flyte.enabled: needs"),
    ];
    for (values, expected) in bad {
        let output = with_values("render", values, &[]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(expected), "{values}: {error}");
    }
}

#[test]
fn the_values_and_manifests_of_the_guide_are_ones_that_helm_and_kubernetes_take() {
    if !has_helm() {
        return;
    }
    let guide = fs::read_to_string(in_repository("docs/kubernetes.md")).unwrap();
    let mut counts = [0, 0];
    for block in guide.split("```yaml\n").skip(1) {
        let indent = block.len() - block.trim_start_matches(' ').len();
        let lines = block.lines().take_while(|line| !line.trim_start().starts_with("```"));
        let block: String = lines.map(|line| format!("{}\n", line.get(indent..).unwrap_or(""))).collect();
        if block.starts_with("plugins:") {
            continue; // Flyte's own configuration.
        }
        let is_manifest = block.starts_with("apiVersion:");
        counts[usize::from(is_manifest)] += 1;
        if is_manifest {
            let list = format!("- {}", block.trim_end().replace('\n', "\n  "));
            assert_eq!(validated(&list, VERSIONS[0]), (vec![], vec![]), "{block}");
        } else {
            assert!(rendered(&block)["notes"].is_string(), "{block}");
        }
    }
    assert_eq!(counts, [5, 1], "sets of values, and manifests");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_of_the_guide_outlasts_the_gap_of_an_update() {
    let guide = fs::read_to_string(in_repository("docs/kubernetes.md")).unwrap();
    let command = &guide[guide.find("curl --retry").unwrap()..];
    let command = command[..command.find("```").unwrap()].to_owned();
    let setup = Setup::with_file("[[secret]]\nname = \"team-a/db\"\nstring = \"ay\"\n");
    let directory = setup.clone().start().await.into_directory("TERM").await;
    let socket = directory.path().join("s.sock");
    assert!(!socket.exists(), "this is the gap");
    let command = command.replace("/run/smcached/smcached.sock", &socket.display().to_string());
    let mut reader = Command::new("sh");
    let reader = reader.args(["-c", &command]).stdout(Stdio::piped()).spawn().unwrap();
    // curl has failed at least once by then, most likely: what is asserted holds either way.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let daemon = setup.launch_in(directory);
    daemon.wait_ready().await;
    assert_eq!(python::printed(&reader.wait_with_output().unwrap()), "ay");
}

#[test]
fn every_value_has_a_comment_and_the_chart_has_the_daemons_version() {
    let values = fs::read_to_string(in_repository(&format!("{CHART}/values.yaml"))).unwrap();
    let lines: Vec<&str> = values.lines().collect();
    let is_comment = |line: &str| line.trim_start().starts_with('#');
    for pair in lines.windows(2).filter(|pair| pair[1].contains(':') && !is_comment(pair[1])) {
        assert!(is_comment(pair[0]), "values.yaml: nothing is said of {:?}", pair[1].trim());
    }
    let chart = fs::read_to_string(in_repository(&format!("{CHART}/Chart.yaml"))).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    assert!(chart.contains(&format!("\nversion: {version}\n")), "{chart}");
    assert!(chart.contains(&format!("\nappVersion: \"{version}\"\n")), "{chart}");
}

/// The actions of a policy, all of whose statements allow.
fn allowed(policy: &str) -> BTreeSet<String> {
    let policy: Value = serde_json::from_str(policy).unwrap();
    assert_eq!(policy["Version"], "2012-10-17");
    let statements = policy["Statement"].as_array().unwrap();
    assert!(statements.iter().all(|statement| statement["Effect"] == "Allow"));
    statements.iter().map(|statement| statement["Action"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_policies_for_iam_allow_what_the_documents_say_and_nothing_else() {
    let read = |path: &str| fs::read_to_string(in_repository(path)).unwrap();
    let guide = read("docs/getting-started.md");
    let shown = guide.split("```json").nth(1).unwrap().split("```").next().unwrap();
    let policy: Value = serde_json::from_str(&read("config/iam/policy.json")).unwrap();
    // The document indents it.
    assert_eq!(policy, serde_json::from_str::<Value>(shown).unwrap());
    assert_eq!(allowed(shown), ["secretsmanager:GetSecretValue".to_owned()].into());

    let named =
        guide.split('`').filter(|word| word.starts_with("secretsmanager:") || word.starts_with("kms:"));
    let mut optional: BTreeSet<String> = named.map(str::to_owned).collect();
    assert!(optional.remove("secretsmanager:GetSecretValue"));
    assert_eq!(allowed(&read("config/iam/policy-optional.json")), optional);
}
