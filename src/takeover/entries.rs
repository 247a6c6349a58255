//! What is held, as bytes: a mark, then for each secret the length of its head in four bytes, the head in JSON, and its value as
//! it is. So no value is copied but into the file and out of it, and whatever bytes come, reading them ends in entries
//! or an error.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::cache::Entry;
use crate::secret::{Origin, SecretId, SecretKey, SecretValue, SecretVersion, VersionSelector};

/// Changes with anything that an older or newer process could not read, or would take for something else.
pub(super) const FORMAT: u32 = 1;

const MARK: &[u8; 16] = b"smcached entries";

/// The longest head: a secret may have many spellings.
const MAX_HEAD: usize = 1 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct Head {
    key: Key,
    names: Vec<Key>,
    arn: String,
    name: String,
    version_id: Arc<str>,
    version_stages: Vec<String>,
    /// Since the Unix epoch.
    created: Option<Duration>,
    is_text: bool,
    age: Duration,
    idle: Duration,
    /// Of the value, in bytes.
    length: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Key {
    region: Option<Arc<str>>,
    role_arn: Option<Arc<str>>,
    id: String,
    version_id: Option<String>,
    stage: Option<String>,
    is_description: bool,
}

impl Key {
    fn of(key: &SecretKey) -> Self {
        Self {
            region: key.origin.region.clone(),
            role_arn: key.origin.role_arn.clone(),
            id: key.id.as_str().to_owned(),
            version_id: key.selector.id().map(str::to_owned),
            stage: key.selector.stage().map(str::to_owned),
            is_description: key.selector.is_description(),
        }
    }

    fn into_key(self) -> io::Result<SecretKey> {
        let selector = if self.is_description {
            VersionSelector::description()
        } else {
            VersionSelector::new(self.version_id.as_deref(), self.stage.as_deref())
                .map_err(|_| invalid("a version that cannot be"))?
        };
        let id = SecretId::parse(&self.id).map_err(|_| invalid("an id that cannot be"))?;
        Ok(SecretKey { origin: Origin { region: self.region, role_arn: self.role_arn }, id, selector })
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

/// Writes entries, each value straight from where it is.
pub(super) fn write(entries: &[Entry], to: &mut impl Write) -> io::Result<()> {
    to.write_all(MARK)?;
    for entry in entries {
        let version = &entry.version;
        let value = version.value.expose();
        let created = version.created_date.and_then(|date| date.duration_since(SystemTime::UNIX_EPOCH).ok());
        let head = Head {
            key: Key::of(&entry.key),
            names: entry.names.iter().map(Key::of).collect(),
            arn: version.arn.clone(),
            name: version.name.clone(),
            version_id: Arc::clone(&version.version_id),
            version_stages: version.version_stages.clone(),
            created,
            is_text: version.value.is_text(),
            age: entry.age,
            idle: entry.idle,
            length: value.len() as u64,
        };
        let head = serde_json::to_vec(&head)?;
        let Some(length) = u32::try_from(head.len()).ok().filter(|_| head.len() <= MAX_HEAD) else {
            continue;
        };
        to.write_all(&[&length.to_le_bytes()[..], &head].concat())?;
        to.write_all(value)?;
    }
    Ok(())
}

/// Reads entries, until the end or the first error.
#[derive(Debug)]
pub(super) struct Entries<R = File> {
    from: R,
    /// Bytes that are not read yet: nothing can be longer.
    left: u64,
}

impl<R: Read> Entries<R> {
    /// Reads `length` bytes.
    pub(super) fn read(mut from: R, length: u64) -> io::Result<Self> {
        let mut mark = [0; MARK.len()];
        from.read_exact(&mut mark)?;
        if mark != *MARK {
            return Err(invalid("no entries"));
        }
        Ok(Self { from, left: length.saturating_sub(MARK.len() as u64) })
    }

    fn entry(&mut self) -> io::Result<Entry> {
        let mut length = [0; 4];
        self.from.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length).into();
        if length > MAX_HEAD as u64 {
            return Err(invalid("a head that is too long"));
        }
        self.left = self.left.saturating_sub(4);
        let head: Head = serde_json::from_slice(&self.bytes(length)?)?;
        let mut value = self.bytes(head.length)?;
        let value = if head.is_text {
            str::from_utf8(&value).map_err(|_| invalid("a text that is none"))?;
            SecretValue::text(String::from_utf8(std::mem::take(&mut *value)).unwrap_or_default())
        } else {
            SecretValue::binary(std::mem::take(&mut *value))
        };
        let created_date = head.created.and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since));
        let version = SecretVersion {
            arn: head.arn,
            name: head.name,
            version_id: head.version_id,
            version_stages: head.version_stages,
            created_date,
            value,
        };
        Ok(Entry {
            key: head.key.into_key()?,
            names: head.names.into_iter().map(Key::into_key).collect::<io::Result<_>>()?,
            version: Arc::new(version),
            age: head.age,
            idle: head.idle,
        })
    }

    fn bytes(&mut self, length: u64) -> io::Result<Zeroizing<Vec<u8>>> {
        self.left = self.left.checked_sub(length).ok_or(ErrorKind::UnexpectedEof)?;
        let length = usize::try_from(length).map_err(|_| ErrorKind::UnexpectedEof)?;
        let mut bytes = Zeroizing::new(vec![0; length]);
        self.from.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

impl<R: Read> Iterator for Entries<R> {
    type Item = io::Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let entry = self.entry();
        if entry.is_err() {
            self.left = 0;
        }
        Some(entry)
    }
}

/// What another process held.
#[derive(Debug)]
pub struct Held {
    entries: Entries,
    /// What is held was at least as young as it says at this moment.
    pub(super) as_of: Instant,
}

impl Held {
    /// Of sealed memory, from where it stands on.
    pub(super) fn read(memory: File, as_of: Instant) -> io::Result<Self> {
        let mut memory = memory;
        let length = memory.metadata()?.len().saturating_sub(memory.stream_position()?);
        Ok(Self { entries: Entries::read(memory, length)?, as_of })
    }

    /// Gives all of it to `take`, which says whether it is of use; the memory that it came in is freed then.
    pub fn give(self, mut take: impl FnMut(Entry) -> bool) {
        let (mut taken, mut left_out) = (0, 0);
        for entry in self.entries {
            match entry {
                Ok(mut entry) => {
                    let on_the_way = self.as_of.elapsed();
                    entry.age += on_the_way;
                    entry.idle += on_the_way;
                    if take(entry) { taken += 1 } else { left_out += 1 }
                }
                Err(error) => tracing::error!(%error, "what the old process holds cannot be read to its end"),
            }
        }
        tracing::info!(taken, left_out, "what the old process held is held here");
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    fn written(entries: &[Entry]) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(entries, &mut bytes).unwrap();
        bytes
    }

    fn read(bytes: &[u8]) -> Vec<io::Result<Entry>> {
        Entries::read(bytes, bytes.len() as u64).map(Iterator::collect).unwrap_or_default()
    }

    fn key() -> impl Strategy<Value = SecretKey> {
        let selector = prop_oneof![
            Just(VersionSelector::current()),
            Just(VersionSelector::description()),
            (option::of("[a-z0-9-]{1,64}"), option::of("[A-Z]{1,20}|AWSCURRENT"))
                .prop_map(|(id, stage)| VersionSelector::new(id.as_deref(), stage.as_deref()).unwrap()),
        ];
        let origin =
            (option::of("[a-z]{2}-[a-z]{4}-[1-9]"), option::of("arn:aws:iam::[0-9]{12}:role/[a-z]{1,9}"));
        (origin, "[A-Za-z0-9/_+=.@-]{1,60}", selector).prop_map(|((region, role_arn), id, selector)| {
            let origin = Origin { region: region.map(Into::into), role_arn: role_arn.map(Into::into) };
            SecretKey { origin, id: SecretId::parse(&id).unwrap(), selector }
        })
    }

    fn entry() -> impl Strategy<Value = Entry> {
        let value = prop_oneof![
            ".{0,300}".prop_map(SecretValue::text),
            vec(any::<u8>(), 0..300).prop_map(SecretValue::binary),
        ];
        let times = (option::of(0u64..1 << 40), 0u64..1 << 50, 0u64..1 << 50);
        let texts = (".{0,60}", ".{0,60}", ".{0,60}", vec(".{0,20}", 0..4));
        (key(), vec(key(), 0..4), texts, value, times).prop_map(
            |(key, names, (arn, name, version_id, version_stages), value, (created, age, idle))| Entry {
                key,
                names,
                version: Arc::new(SecretVersion {
                    arn,
                    name,
                    version_id: version_id.into(),
                    version_stages,
                    created_date: created.map(|since| SystemTime::UNIX_EPOCH + Duration::from_millis(since)),
                    value,
                }),
                age: Duration::from_nanos(age),
                idle: Duration::from_nanos(idle),
            },
        )
    }

    #[test]
    fn nothing_longer_than_what_is_there_is_made_room_for() {
        let head = r#"{"key":{"id":"x","is_description":false},"names":[],"arn":"","name":"","version_id":"",
            "version_stages":[],"is_text":false,"age":{"secs":0,"nanos":0},"idle":{"secs":0,"nanos":0},"length":"#;
        for (length, is_right) in [("3", true), ("4", false), ("18446744073709551615", false)] {
            let head = format!("{head}{length}}}");
            let head_length = u32::try_from(head.len()).unwrap().to_le_bytes();
            let bytes = [MARK, &head_length[..], head.as_bytes(), b"abc"].concat();
            let entries = read(&bytes);
            assert_eq!((entries.len(), entries[0].is_ok()), (1, is_right), "{length}: {entries:?}");
        }
        let bytes = [MARK, &u32::MAX.to_le_bytes()[..], b"{}"].concat();
        assert!(read(&bytes)[0].is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_written_reads_as_the_same(entries in vec(entry(), 0..5)) {
            let again: Vec<_> = read(&written(&entries)).into_iter().map(Result::unwrap).collect();
            prop_assert_eq!(again, entries);
        }

        #[test]
        fn a_part_of_it_reads_as_whole_entries_and_then_an_error(entries in vec(entry(), 1..4), cut in any::<prop::sample::Index>()) {
            let bytes = written(&entries);
            let cut = cut.index(bytes.len());
            for (found, entry) in read(&bytes[..cut]).into_iter().zip(&entries) {
                prop_assert!(found.is_err() || found.unwrap() == *entry);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(entries in vec(entry(), 1..3), noise in vec((any::<prop::sample::Index>(), any::<u8>()), 1..20)) {
            let mut bytes = written(&entries);
            for (at, byte) in noise {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            read(&bytes);
        }

        #[test]
        fn no_garbage_makes_it_panic(garbage in vec(any::<u8>(), 0..300)) {
            read(&[&MARK[..], &garbage].concat());
        }
    }
}
