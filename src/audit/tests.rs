use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use serde_json::Value;
use tokio::time::advance;

use super::file::{FileOptions, TrailFile};
use super::queue::{Entry, Queue};
use super::writer::{Pace, Sink, Writer};
use super::{Audit, Event, Output, line};
use crate::metrics::Metrics;

const PATIENCE: Duration = Duration::from_secs(20);

/// Something to write to that keeps what it gets.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Memory {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A pipe that nobody reads: says that it is written to, and waits until it is let go.
struct Stalled {
    memory: Memory,
    entered: Sender<()>,
    released: Receiver<()>,
}

impl Write for Stalled {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.entered.send(());
        // Once the test has let go of its end, nothing waits any more.
        let _ = self.released.recv();
        self.memory.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A disk with room for some bytes, which may be given more.
#[derive(Clone, Default)]
struct Disk {
    memory: Memory,
    room: Arc<Mutex<usize>>,
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut room = self.room.lock().unwrap();
        let count = bytes.len().min(*room);
        *room -= count;
        if count == 0 { Err(io::ErrorKind::StorageFull.into()) } else { self.memory.write(&bytes[..count]) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The event of one read, told from others by its status.
fn event(status: u16) -> Event {
    Event { listener: "l".into(), surface: "secret", outcome: "hit", status, ..Event::default() }
}

fn entry(status: u16) -> Entry {
    Entry { time: SystemTime::UNIX_EPOCH, event: event(status) }
}

/// Events by what became of them: written, dropped, failed.
fn counts(metrics: &Metrics) -> (u64, u64, u64) {
    let page = String::from_utf8(metrics.render().unwrap()).unwrap();
    let count = |result: &str| {
        let start = format!("smcached_audit_events_total{{result=\"{result}\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&start)).unwrap().parse().unwrap()
    };
    (count("written"), count("dropped"), count("failed"))
}

fn parsed(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
        .collect()
}

fn statuses(text: &str) -> Vec<u64> {
    parsed(text).iter().filter_map(|line| line["status"].as_u64()).collect()
}

fn rendered(event: Event, time: SystemTime) -> String {
    let mut lines = Vec::new();
    line::event(&Entry { time, event }, &mut lines);
    String::from_utf8(lines).unwrap()
}

fn at(milliseconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds)
}

#[test]
fn a_line_is_this_byte_for_byte() {
    let read = Event {
        listener: "unix:/run/smcached/smcached.sock".into(),
        uid: Some(1000),
        gid: Some(1001),
        pid: Some(42),
        program: Some("/usr/bin/curl".into()),
        surface: "secret",
        secret_id: Some("team-a/db".into()),
        version_id: Some("a1b2c3d4-5678-90ab-cdef-example11111".into()),
        outcome: "hit",
        status: 200,
        age: Some(12),
        request_id: Some("r-1".into()),
    };
    let expected = "{\"time\":\"2026-02-28T23:59:59.007Z\",\"listener\":\"unix:/run/smcached/smcached.sock\",\
                    \"uid\":1000,\"gid\":1001,\"pid\":42,\"program\":\"/usr/bin/curl\",\"surface\":\"secret\",\
                    \"secret_id\":\"team-a/db\",\"version_id\":\"a1b2c3d4-5678-90ab-cdef-example11111\",\
                    \"outcome\":\"hit\",\"status\":200,\"age\":12,\"request_id\":\"r-1\"}\n";
    assert_eq!(rendered(read, at(1_772_323_199_007)), expected);
    let refused = Event {
        listener: "tcp:127.0.0.1:2773".into(),
        surface: "agent",
        outcome: "token_wrong",
        status: 401,
        ..Event::default()
    };
    let expected = "{\"time\":\"1970-01-01T00:00:00.000Z\",\"listener\":\"tcp:127.0.0.1:2773\",\"surface\":\"agent\",\
                    \"outcome\":\"token_wrong\",\"status\":401}\n";
    assert_eq!(rendered(refused, at(0)), expected);
}

#[test]
fn a_line_about_a_gap_is_this_byte_for_byte() {
    let mut lines = Vec::new();
    line::gap(at(1), "dropped", 7, &mut lines);
    let expected = "{\"time\":\"1970-01-01T00:00:00.001Z\",\"event\":\"dropped\",\"count\":7}\n";
    assert_eq!(String::from_utf8(lines).unwrap(), expected);
}

#[test]
fn text_of_others_is_escaped_to_ascii() {
    let forged = "a\"}\r\n{\"outcome\":\"hit\"}\u{2028}\u{85}\u{1b}[2J\u{202e}é😀\\";
    let line = rendered(Event { secret_id: Some(forged.into()), ..event(404) }, at(0));
    let id = "\"a\\\"}\\r\\n{\\\"outcome\\\":\\\"hit\\\"}\\u2028\\u0085\\u001b[2J\\u202e\\u00e9\\ud83d\\ude00\\\\\"";
    assert!(line.contains(&format!("\"secret_id\":{id},")), "{line}");
    assert_eq!(parsed(&line)[0]["secret_id"], forged);
}

#[test]
fn hostile_text_does_not_make_long_lines() {
    let long = |text: &str| -> Option<Arc<str>> { Some(text.repeat(8192).into()) };
    for text in ["a", "\n", "\"", "é", "😀", "\u{7f}"] {
        let hostile = Event {
            program: long(text),
            secret_id: long(text),
            version_id: long(text),
            request_id: long(text),
            listener: long(text).unwrap(),
            ..event(404)
        };
        let line = rendered(hostile, at(0));
        let most = 256 + 256 + 2048 + 64 + 64;
        assert!((most..most + 250).contains(&(line.len() + 30)), "{text:?}: {} bytes", line.len());
        assert_eq!(parsed(&line).len(), 1);
    }
}

fn texts() -> impl Strategy<Value = Option<Arc<str>>> {
    prop_oneof![
        Just(None),
        any::<String>().prop_map(|text| Some(text.into())),
        "[\\PC\n\r\"\\\\\u{0}-\u{1f}\u{2028}\u{85}]{0,60}".prop_map(|text: String| Some(text.into())),
    ]
}

proptest! {
    #[test]
    fn every_event_is_one_line_of_json_that_has_all_that_was_given(
        (listener, program, secret_id, version_id, request_id) in (".{0,40}", texts(), texts(), texts(), texts()),
        (uid, gid, pid, age) in any::<(Option<u32>, Option<u32>, Option<u32>, Option<u64>)>(),
        status: u16,
        time in 0..4_000_000_000_000_u64,
    ) {
        let event = Event {
            listener: listener.as_str().into(), uid, gid, pid, surface: "wait", outcome: "fetched", status, age,
            program: program.clone(), secret_id: secret_id.clone(), version_id: version_id.clone(),
            request_id: request_id.clone(),
        };
        let line = rendered(event, at(time));
        prop_assert!(line.is_ascii() && line.ends_with('\n'));
        prop_assert!(!line[..line.len() - 1].contains(|c: char| c.is_control() && c != '\u{7f}'), "{:?}", line);
        let line: Value = serde_json::from_str(&line).unwrap();
        let number = |number: Option<u64>| number.map_or(Value::Null, Value::from);
        prop_assert_eq!(&line["uid"], &number(uid.map(u64::from)));
        prop_assert_eq!(&line["gid"], &number(gid.map(u64::from)));
        prop_assert_eq!(&line["pid"], &number(pid.map(u64::from)));
        prop_assert_eq!(&line["age"], &number(age));
        prop_assert_eq!(&line["status"], &Value::from(status));
        prop_assert_eq!(&line["surface"], "wait");
        prop_assert_eq!(&line["outcome"], "fetched");
        for (key, given) in [
            ("listener", &Some(listener.into())), ("program", &program), ("secret_id", &secret_id),
            ("version_id", &version_id), ("request_id", &request_id),
        ] {
            match given {
                None => prop_assert!(line.get(key).is_none()),
                Some(given) => {
                    // What is too long is cut, never changed.
                    let shown = line[key].as_str().unwrap();
                    prop_assert!(given.starts_with(shown), "{}: {:?} {:?}", key, given, shown);
                    prop_assert!(shown.len() == given.len() || given.len() >= 10, "{}: {:?} {:?}", key, given, shown);
                }
            }
        }
    }
}

#[tokio::test]
async fn without_a_trail_nothing_is_counted() {
    let audit = Audit::off();
    assert!(!audit.is_on());
    audit.record(event(200));
    audit.reopen();
    audit.finish(PATIENCE).await;
}

#[tokio::test]
async fn finishing_writes_all_that_waits_in_the_order_in_which_it_came() {
    let (metrics, memory) = (Metrics::new(), Memory::default());
    let audit = Audit::to_writer(memory.clone(), 10_000, metrics.audit.clone());
    assert!(audit.is_on());
    for status in 0..5000 {
        audit.clone().record(event(status));
    }
    audit.finish(PATIENCE).await;
    assert_eq!(statuses(&memory.text()), (0..5000).collect::<Vec<_>>());
    audit.record(event(1));
    assert_eq!(counts(&metrics), (5000, 1, 0), "what comes after the end is counted too");
}

#[tokio::test]
async fn lines_come_out_without_being_asked_for() {
    let (entered, seen) = channel();
    let (release, released) = channel();
    let (metrics, memory) = (Metrics::new(), Memory::default());
    let stalled = Stalled { memory, entered, released };
    let audit = Audit::to_writer(stalled, 100, metrics.audit.clone());
    // The writer falls asleep between them.
    for status in [1, 2] {
        audit.record(event(status));
        seen.recv_timeout(PATIENCE).unwrap();
        release.send(()).unwrap();
    }
    drop(release);
    audit.finish(PATIENCE).await;
    assert_eq!(counts(&metrics), (2, 0, 0));
}

#[tokio::test]
async fn a_stalled_output_drops_events_and_the_trail_says_so_where_they_are_missing() {
    let (entered, seen) = channel();
    let (release, released) = channel();
    let (metrics, memory) = (Metrics::new(), Memory::default());
    let stalled = Stalled { memory: memory.clone(), entered, released };
    let audit = Audit::to_writer(stalled, 10, metrics.audit.clone());
    audit.record(event(0));
    seen.recv_timeout(PATIENCE).unwrap();
    // The writer hangs with the first; ten wait; none of this waits for anybody.
    for status in 1..=25 {
        audit.record(event(status));
    }
    assert_eq!(counts(&metrics), (0, 15, 0));
    drop(release);
    audit.finish(PATIENCE).await;
    assert_eq!(counts(&metrics), (11, 15, 0));
    let text = memory.text();
    assert_eq!(statuses(&text), (0..=10).collect::<Vec<_>>());
    let last = parsed(&text).pop().unwrap();
    assert_eq!((&last["event"], &last["count"]), (&"dropped".into(), &15.into()), "{text}");
    assert!(last["time"].is_string());
}

#[tokio::test(start_paused = true)]
async fn finishing_gives_up_on_an_output_that_hangs() {
    let (entered, seen) = channel();
    let (release, released) = channel();
    let metrics = Metrics::new();
    let stalled = Stalled { memory: Memory::default(), entered, released };
    let audit = Audit::to_writer(stalled, 10, metrics.audit.clone());
    audit.record(event(0));
    seen.recv_timeout(PATIENCE).unwrap();
    audit.finish(PATIENCE).await;
    assert_eq!(counts(&metrics), (0, 0, 0), "the writer still hangs");
    drop(release);
}

#[tokio::test]
async fn a_full_disk_loses_events_and_is_written_again_when_there_is_room() {
    let metrics = Metrics::new();
    let disk = Disk::default();
    let length = rendered(event(100), at(0)).len();
    let write = |writer: &mut Writer, statuses: &[u16]| {
        let mut entries: Vec<_> = statuses.iter().map(|status| entry(*status)).collect();
        writer.write(&mut entries, &mut Vec::new());
    };
    let mut writer = Writer::new(Sink::Stream(Box::new(disk.clone())), metrics.audit.clone());
    // Room for one line and a half.
    *disk.room.lock().unwrap() = length + length / 2;
    write(&mut writer, &[100, 101, 102]);
    assert_eq!(counts(&metrics), (1, 0, 1), "the second is half out and not given up");
    write(&mut writer, &[103]);
    assert_eq!(counts(&metrics), (1, 0, 2));
    *disk.room.lock().unwrap() = usize::MAX;
    write(&mut writer, &[104]);
    assert_eq!(counts(&metrics), (3, 0, 2));
    let lines = parsed(&disk.memory.text());
    let seen: Vec<_> = lines.iter().map(|line| (&line["status"], &line["event"], &line["count"])).collect();
    let (none, line) = (&Value::Null, |status: u16| Value::from(status));
    let expected = [
        (&line(100), none, none),
        (&line(101), none, none),
        (none, &"failed".into(), &2.into()),
        (&line(104), none, none),
    ];
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn however_little_room_there_is_all_events_are_accounted_for() {
    let length = rendered(event(100), at(0)).len();
    for room in 0..4 * length {
        let (metrics, disk) = (Metrics::new(), Disk::default());
        *disk.room.lock().unwrap() = room;
        let queue = Queue::new(100, metrics.audit.clone());
        let writer = Writer::new(Sink::Stream(Box::new(disk.clone())), metrics.audit.clone());
        for status in [100, 101, 102] {
            queue.push(entry(status));
        }
        queue.close();
        writer.run(&queue);
        let (written, dropped, failed) = counts(&metrics);
        assert_eq!((written + failed, dropped), (3, 0), "{room}");
        assert_eq!(written, (room / length).min(3) as u64, "{room}");
    }
}

#[tokio::test]
async fn a_closed_pipe_is_counted_and_ends_nothing() {
    let metrics = Metrics::new();
    let (reader, pipe) = io::pipe().unwrap();
    drop(reader);
    let audit = Audit::to_writer(pipe, 10, metrics.audit.clone());
    audit.record(event(1));
    audit.record(event(2));
    audit.finish(PATIENCE).await;
    assert_eq!(counts(&metrics), (0, 0, 2));
}

fn options(folder: &Path, max_bytes: u64, keep: u32) -> FileOptions {
    FileOptions { path: folder.join("audit.log"), max_bytes, keep, mode: 0o640, owner: None }
}

/// A file and its numbered predecessors, as far as they are there.
fn generations(path: &Path) -> Vec<String> {
    let names = (0..).map(|place| match place {
        0 => path.to_owned(),
        _ => format!("{}.{place}", path.display()).into(),
    });
    names.map_while(|name| fs::read_to_string(name).ok()).collect()
}

#[test]
fn a_file_is_made_with_its_mode_and_appended_to() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path(), 1000, 2);
    TrailFile::open(options.clone()).unwrap().write(b"one\n").1.unwrap();
    assert_eq!(fs::metadata(&options.path).unwrap().permissions().mode() & 0o7777, 0o640);
    TrailFile::open(options.clone()).unwrap().write(b"two\n").1.unwrap();
    assert_eq!(generations(&options.path), ["one\ntwo\n"]);
}

#[test]
fn a_link_or_a_pipe_in_the_place_of_the_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path(), 1000, 2);
    let target = folder.path().join("target");
    for is_there in [false, true] {
        if is_there {
            fs::write(&target, "untouched").unwrap();
        }
        symlink(&target, &options.path).unwrap();
        TrailFile::open(options.clone()).unwrap_err();
        assert_eq!(target.exists(), is_there);
        fs::remove_file(&options.path).unwrap();
    }
    assert_eq!(fs::read_to_string(&target).unwrap(), "untouched");
    nix::unistd::mkfifo(&options.path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    TrailFile::open(options.clone()).unwrap_err();
    let error = Audit::start(Output::File(options), Metrics::new().audit).unwrap_err().to_string();
    assert!(error.contains("audit.log cannot be opened"), "{error}");
}

#[test]
fn a_file_is_moved_away_before_it_grows_too_large_and_so_many_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path(), 8, 2);
    let mut file = TrailFile::open(options.clone()).unwrap();
    assert_eq!(file.write(b"1..\n2..\n3..\n").0, 12);
    assert_eq!(generations(&options.path), ["3..\n", "1..\n2..\n"]);
    file.write(b"4..\n5..\n6..\n7..\n").1.unwrap();
    assert_eq!(generations(&options.path), ["7..\n", "5..\n6..\n", "3..\n4..\n"]);
    file.write(b"8..\n9..\n").1.unwrap();
    assert_eq!(generations(&options.path), ["9..\n", "7..\n8..\n", "5..\n6..\n"]);
    // A line that is longer than a file may be has one to itself.
    file.write(b"a long one\nx..\n").1.unwrap();
    assert_eq!(generations(&options.path), ["x..\n", "a long one\n", "9..\n"]);
    assert_eq!(fs::metadata(&options.path).unwrap().permissions().mode() & 0o7777, 0o640);
}

#[test]
fn what_an_earlier_process_wrote_counts_towards_the_size() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path(), 8, 1);
    fs::write(&options.path, "1..\n2..\n").unwrap();
    TrailFile::open(options.clone()).unwrap().write(b"3..\n").1.unwrap();
    assert_eq!(generations(&options.path), ["3..\n", "1..\n2..\n"]);
}

#[test]
fn a_line_that_was_cut_is_ended_in_the_same_file() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path(), 8, 2);
    let mut file = TrailFile::open(options.clone()).unwrap();
    file.write(b"1..\nhal").1.unwrap();
    file.write(b"f of it\n2..\n").1.unwrap();
    assert_eq!(generations(&options.path), ["2..\n", "half of it\n", "1..\n"]);
}

#[test]
fn where_a_file_cannot_be_moved_away_it_grows_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path(), 8, 2);
    // A directory with something in it cannot be replaced.
    fs::write(folder.path().join("audit.log.1"), "0..\n").unwrap();
    fs::create_dir_all(folder.path().join("audit.log.2/x")).unwrap();
    let mut file = TrailFile::open(options.clone()).unwrap();
    for line in [b"1..\n", b"2..\n", b"3..\n", b"4..\n"] {
        file.write(line).1.unwrap();
    }
    assert_eq!(generations(&options.path), ["1..\n2..\n3..\n4..\n", "0..\n"]);
}

#[test]
fn older_files_move_on_only_to_make_room() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path(), 4, 3);
    fs::write(folder.path().join("audit.log.2"), "0..\n").unwrap();
    TrailFile::open(options.clone()).unwrap().write(b"1..\n2..\n").1.unwrap();
    assert_eq!(generations(&options.path), ["2..\n", "1..\n", "0..\n"]);
}

#[tokio::test(start_paused = true)]
async fn what_lasts_is_said_once_a_minute() {
    let mut pace = Pace::default();
    assert_eq!((pace.is_due(), pace.is_due()), (true, false));
    advance(Duration::from_secs(59)).await;
    assert!(!pace.is_due());
    advance(Duration::from_secs(1)).await;
    assert_eq!((pace.is_due(), pace.is_due()), (true, false));
}

#[tokio::test]
async fn after_the_file_was_moved_away_a_new_one_is_opened_when_told() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path(), 1 << 20, 2);
    let metrics = Metrics::new();
    let audit = Audit::start(Output::File(options.clone()), metrics.audit.clone()).unwrap();
    let moved = folder.path().join("moved");
    fs::rename(&options.path, &moved).unwrap();
    audit.reopen();
    audit.record(event(1));
    audit.finish(PATIENCE).await;
    assert_eq!(statuses(&fs::read_to_string(&options.path).unwrap()), [1]);
    assert_eq!(fs::read_to_string(moved).unwrap(), "");
    assert_eq!(counts(&metrics), (1, 0, 0));
}

#[tokio::test]
async fn a_file_that_cannot_be_opened_again_is_tried_with_every_write() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path(), 1 << 20, 2);
    let metrics = Metrics::new();
    let mut writer =
        Writer::new(Sink::File(TrailFile::open(options.clone()).unwrap()), metrics.audit.clone());
    fs::rename(&options.path, folder.path().join("moved")).unwrap();
    fs::create_dir(&options.path).unwrap();
    writer.reopen();
    writer.write(&mut vec![entry(100)], &mut Vec::new());
    assert_eq!(counts(&metrics), (0, 0, 1));
    fs::remove_dir(&options.path).unwrap();
    writer.write(&mut vec![entry(101)], &mut Vec::new());
    assert_eq!(counts(&metrics), (1, 0, 1));
    let text = fs::read_to_string(&options.path).unwrap();
    assert!(text.lines().next().unwrap().ends_with("\"event\":\"failed\",\"count\":1}"), "{text}");
    assert_eq!(statuses(&text), [101]);
}
