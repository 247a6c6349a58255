//! What the two sides agree on before anything passes.

use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;

use proptest::collection::vec;
use proptest::prelude::*;
use tokio::net::UnixStream;

use super::channel::Channel;
use super::*;

fn source(parts: &[(&str, &str)]) -> BTreeMap<String, String> {
    parts.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn what_is_held_passes_between_equal_sources_and_the_difference_is_named() {
    let ours = source(&[("region", "us-west-2"), ("profile", "a")]);
    assert_eq!(difference(Some(&ours), Some(&ours)), None);
    let theirs = source(&[("region", "us-west-2"), ("endpoint_url", "http://x")]);
    let reason = difference(Some(&theirs), Some(&ours)).unwrap();
    assert!(reason.contains("endpoint_url, profile differ") && !reason.contains("http://x"), "{reason}");
    assert!(difference(None, Some(&ours)).is_some() && difference(None, None).is_some());
}

#[test]
fn sealed_memory_reads_from_its_beginning_and_nobody_can_change_it() {
    let memory = memory::sealed(|file| file.write_all(b"content")).unwrap();
    let mut other = memory.try_clone().unwrap();
    other.rewind().unwrap();
    assert!(other.write_all(b"x").is_err() && other.set_len(0).is_err() && other.set_len(99).is_err());
    let mut content = String::new();
    memory::received(memory).unwrap().read_to_string(&mut content).unwrap();
    assert_eq!(content, "content");
    let unsealed = tempfile::tempfile().unwrap();
    assert!(memory::received(unsealed).is_err());
}

#[tokio::test]
async fn messages_and_their_descriptors_arrive_together_and_in_order() {
    let (one, other) = UnixStream::pair().unwrap();
    let (mut one, mut other) = (Channel::new(one), Channel::new(other));
    let mut files = Vec::new();
    for content in ["first", "second"] {
        files.push(memory::sealed(|file| file.write_all(content.as_bytes())).unwrap());
    }
    // Larger than the socket's buffer, so that it takes more than one call.
    let long = "x".repeat(900_000);
    let sending = tokio::spawn(async move {
        one.send(&"none", &[]).await.unwrap();
        one.send(&long, &[files[0].as_fd(), files[1].as_fd()]).await.unwrap();
        one.send(&"last", &[files[1].as_fd()]).await.unwrap();
    });
    assert_eq!(other.receive::<String>().await.unwrap().1.len(), 0);
    let (text, descriptors) = other.receive::<String>().await.unwrap();
    assert_eq!((text.len(), descriptors.len()), (900_000, 2));
    let (text, last) = other.receive::<String>().await.unwrap();
    assert_eq!((text.as_str(), last.len()), ("last", 1));
    for (descriptor, expected) in descriptors.into_iter().chain(last).zip(["first", "second", "second"]) {
        let mut content = String::new();
        memory::received(descriptor.into()).unwrap().read_to_string(&mut content).unwrap();
        assert_eq!(content, expected);
    }
    sending.await.unwrap();
    assert!(other.receive::<String>().await.is_err(), "the other end is closed");
}

fn terms(source: Option<BTreeMap<String, String>>) -> Terms {
    Terms { uid: 0, source }
}

#[test]
fn what_is_left_is_for_a_process_with_the_same_source_only() {
    let ours = terms(Some(source(&[("region", "us-west-2")])));
    let theirs = terms(Some(source(&[("region", "us-east-1")])));
    assert!(stored(&[], &terms(None)).unwrap().is_none(), "secrets of a file are read anew");
    for (terms, is_taken) in [(&ours, true), (&theirs, false), (&terms(None), false)] {
        let left = stored(&[], &ours).unwrap().unwrap();
        assert_eq!(restored(Ok(left), terms).is_some(), is_taken, "{terms:?}");
    }
}

#[test]
fn what_is_left_ages() {
    let ours = terms(Some(BTreeMap::new()));
    let left = stored(&[], &ours).unwrap().unwrap();
    let later = Duration::from_secs(5);
    let held = stored::open(left, &ours, stored::since_boot() + later).unwrap().unwrap();
    assert!(held.as_of.elapsed() >= later, "it is as of when it was written");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn nothing_that_is_left_makes_it_panic(mut garbage in vec(any::<u8>(), 0..300), is_short in any::<bool>()) {
        // A length that there may be.
        if is_short && let Some(length) = garbage.get_mut(1..4) {
            length.fill(0);
        }
        let left = memory::sealed(|file| file.write_all(&garbage)).unwrap();
        prop_assert!(restored(Ok(left), &terms(Some(BTreeMap::new()))).is_none());
    }
}
