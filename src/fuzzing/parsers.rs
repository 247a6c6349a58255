//! Targets that read one text. Where another way to the answer is known, the two are compared.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::access::{Candidates, Patterns, Verdict};
use crate::cache::Demand;
use crate::cli;
use crate::config::{ClientAddress, Config};
use crate::secret::{
    Arn, CompleteArn, Field, Group, MAX_ID_BYTES, Origin, Resolver, SecretId, SecretKey, SecretPath,
    SecretValue, Unlisted, VersionSelector, is_region, partition_of,
};
use crate::source::SecretSource;
use crate::source::file::FileSource;
use crate::units::{parse_duration, parse_size, show_duration, show_size};

/// What follows `/secret/`: whatever the spelling, it is refused, or names one id that says nothing doubtful.
pub fn secret_path(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let group = Group {
        name: "team-a".into(),
        prefix: "prod/team-a/".into(),
        origin: Origin { region: Some("us-west-2".into()), role_arn: None },
        ttl: None,
        fallback_regions: Vec::new(),
    };
    let resolvers = [
        Resolver::default(),
        Resolver::new([group.clone()], Unlisted::Allow),
        Resolver::new([group], Unlisted::Deny),
    ];
    for resolver in resolvers {
        let Some(key) = resolved(&resolver, text) else { continue };
        check_id(&key.id);
        let is_dot = |part: &str| matches!(part, "." | "..");
        assert!(!key.id.name().split('/').any(is_dot), "a dot segment in {key:?}");
        let _ = resolver.group_of(&key);
        let escaped = utf8_percent_encode(key.id.as_str(), NON_ALPHANUMERIC).to_string();
        let again = resolved(&Resolver::default(), &escaped).map(|again| again.id);
        assert_eq!(again.as_ref(), Some(&key.id), "escaped, it is another one");
    }
}

fn resolved(resolver: &Resolver, raw: &str) -> Option<SecretKey> {
    resolver.resolve(SecretPath::parse(raw).ok()?, VersionSelector::current()).ok()
}

/// An id as AWS's own APIs take it.
pub fn secret_id(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(arn) = Arn::parse(text) {
        assert!(is_region(arn.region) && text.ends_with(arn.name), "{arn:?}");
    }
    if let Ok(id) = SecretId::parse(text) {
        assert_eq!(id.as_str(), text);
        check_id(&id);
    }
}

fn check_id(id: &SecretId) {
    assert_eq!(SecretId::parse(id.as_str()).as_ref(), Ok(id), "it cannot be read again");
    assert!(id.as_str().len() <= MAX_ID_BYTES);
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/_+=.@-".contains(&byte);
    assert!(!id.name().is_empty() && id.name().bytes().all(is_plain), "{id}");
    assert_eq!(id.region().is_some(), id.is_arn());
    assert!(id.region().is_none_or(is_region), "{id} makes a strange host name");
    let key = SecretKey { origin: Origin::default(), id: id.clone(), selector: VersionSelector::current() };
    if let Ok(replica) = key.in_region("eu-west-1") {
        assert_eq!((replica.region(), replica.id.name()), (Some("eu-west-1"), id.name()));
    }
}

/// A `Cache-Control` header of a reader.
pub fn cache_control(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut demand = Demand::default();
    demand.add_cache_control(text);
    let once = demand;
    demand.add_cache_control(text);
    assert_eq!(demand, once, "said twice, it means something else");
}

/// Durations and sizes.
pub fn units(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(duration) = parse_duration(text) {
        assert_eq!(parse_duration(&show_duration(duration)), Some(duration));
    }
    if let Some(bytes) = parse_size(text) {
        assert_eq!(parse_size(&show_size(bytes)), Some(bytes));
    }
}

/// A field's name in the first line, and a secret in the others: as `serde_json` finds it.
pub fn field(data: &[u8]) {
    let Some((name, secret)) = first_line(data) else { return };
    let Some(field) = Field::parse(name) else { return };
    let found = field.of(secret.as_bytes());
    // The parser gives this key a meaning of its own.
    if secret.contains("$serde_json") {
        return;
    }
    let Ok(document) = serde_json::from_str::<serde_json::Value>(secret) else { return };
    let expected = if name.starts_with('/') { document.pointer(name) } else { document.get(name) };
    assert_eq!(found.is_some(), expected.is_some(), "{name:?}");
    if let (Some(found), Some(expected)) = (found, expected) {
        match expected.as_str() {
            Some(text) => assert_eq!(found, text.as_bytes()),
            None => {
                let found: Option<serde_json::Value> = serde_json::from_slice(&found).ok();
                assert_eq!(found.as_ref(), Some(expected));
            }
        }
    }
}

/// A pattern in the first line, and a name or an ARN in the others. However a secret is spelt, nobody gets it by one
/// spelling who would not by another.
pub fn patterns(data: &[u8]) {
    let Some((pattern, text)) = first_line(data) else { return };
    // AWS has no such character in what it calls a secret, and here it stands for what is not known.
    let text = &text.replace('\u{1}', "");
    let patterns = Patterns::new(&[pattern.to_owned()]);
    let arn = if pattern.contains(':') { text } else { "" };
    let matches = matches_by_steps(pattern.as_bytes(), text.as_bytes());
    assert_eq!(patterns.contain(text, arn), matches, "{pattern:?} against {text:?}");
    let Some(complete) = CompleteArn::parse(text).filter(|_| SecretId::parse(text).is_ok()) else { return };
    let Ok(Arn { region, .. }) = Arn::parse(text) else { return };
    if !text.starts_with(&format!("arn:{}:", partition_of(region))) {
        // There is no such place.
        return;
    }
    let truth = patterns.contain(complete.name, text);
    for spelling in [complete.name, text, &text[..text.len() - 7]] {
        let Ok(id) = SecretId::parse(spelling) else { continue };
        let key = SecretKey { origin: Origin::default(), id, selector: VersionSelector::current() };
        for region in [Some(region), None] {
            match patterns.verdict(&Candidates::of(&key, region)) {
                Verdict::Yes => assert!(truth, "{pattern:?} lets {spelling:?} in"),
                Verdict::No => assert!(!truth, "{pattern:?} keeps {spelling:?} out"),
                Verdict::Depends => {}
            }
        }
    }
}

/// The same, one byte of the pattern at a time: how much of the text each beginning of the pattern can cover.
fn matches_by_steps(pattern: &[u8], text: &[u8]) -> bool {
    let mut covers = vec![false; text.len() + 1];
    covers[0] = true;
    for byte in pattern {
        if *byte == b'*' {
            let mut so_far = false;
            for covered in &mut covers {
                so_far |= *covered;
                *covered = so_far;
            }
        } else {
            for at in (0..text.len()).rev() {
                covers[at + 1] = covers[at] && (*byte == b'?' || text[at] == *byte);
            }
            covers[0] = false;
        }
    }
    covers[text.len()]
}

/// A configuration: what is in effect reads as the same again, and what is wrong is said in one line an error.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::parse("t.toml", text) {
        Ok(config) => {
            let shown = config.to_toml();
            assert_eq!(Config::parse("shown.toml", &shown).as_ref(), Ok(&config), "{shown}");
        }
        Err(complaints) => check_complaints(complaints.lines()),
    }
}

fn check_complaints(lines: &[String]) {
    assert!(!lines.is_empty(), "refused without a reason");
    for line in lines {
        assert!(!line.contains(char::is_control), "{line:?}");
    }
}

/// A file of secrets: with one more secret at its end, which is found if the file is good and never quoted if it
/// is not.
pub fn secrets_file(data: &[u8]) {
    const VALUE: &str = "k2n8v0q7c4x1";
    let Ok(text) = std::str::from_utf8(data) else { return };
    let text = format!("{text}\n[[secret]]\nname = \"the/last\"\nstring = \"{VALUE}\"\n");
    match FileSource::of_text(&text) {
        Ok(source) => {
            let key = resolved(&Resolver::default(), "the/last").expect("it is well formed");
            let mut fetching = pin!(source.fetch(&key));
            let found = fetching.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            let Poll::Ready(Ok(version)) = found else { panic!("it is not found") };
            assert_eq!(version.value, SecretValue::text(VALUE.to_owned()));
        }
        Err(complaints) => {
            check_complaints(complaints.lines());
            assert!(!complaints.to_string().contains(VALUE) || data_has(data, VALUE), "{complaints}");
        }
    }
}

fn data_has(data: &[u8], text: &str) -> bool {
    data.windows(text.len()).any(|window| window == text.as_bytes())
}

/// What names secrets on a command line or in the environment: the daemon understands what is asked of it.
pub fn commands(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for target in cli::fuzzing::exec_targets(text) {
        let _ = asked_for(&target);
    }
    if let Some((target, id)) = cli::fuzzing::init_target(text) {
        check_id(&id);
        if let Some(asked) = asked_for(&target) {
            assert_eq!(asked.id, id, "the daemon is asked for another one than AWS");
        }
    }
    let _ = ClientAddress::parse(text);
}

/// What a daemon makes of a request's path and query.
fn asked_for(target: &str) -> Option<SecretKey> {
    let target: hyper::http::uri::PathAndQuery = target.parse().expect("a client cannot send it");
    let raw = target.path().strip_prefix("/secret/").expect("it is another route");
    resolved(&Resolver::default(), raw)
}

/// The first line, and what follows it.
fn first_line(data: &[u8]) -> Option<(&str, &str)> {
    std::str::from_utf8(data).ok()?.split_once('\n')
}
