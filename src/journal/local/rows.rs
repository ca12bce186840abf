//! Rows that are JSON beside their checksum: dead letters and quarantined bodies, and what the journal knows of itself.

use std::collections::BTreeMap;

use bytes::Bytes;
use rusqlite::{Connection, params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::layout::PAGE;
use super::store::{DeadLetter, Filed, Note, Page, Pick, StoreError, StoreState};
use crate::journal::identity::LogIdentity;

/// The rows of `state`: an [`Identity`], which older programs neither have nor see; a [`StoreState`]; the names of the sinks with a place, or null if damage took that knowledge. What
/// follow are [`Note`]s.
pub(crate) const IDENTITY: u64 = 0;
pub(crate) const STATE: u64 = 1;
pub(crate) const SINKS: u64 = 2;

/// Which log it is.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    pub(crate) log: LogIdentity,
}

pub(crate) fn put_identity(connection: &Connection, log: LogIdentity) -> rusqlite::Result<()> {
    put_about_itself(connection, IDENTITY, &Identity { log })
}

/// Writes a dead letter or a quarantined body, over the one of that number; about how many pages that is.
pub(crate) fn put_filed<T: Filed>(connection: &Connection, filed: &T) -> rusqlite::Result<usize> {
    let (table, _) = T::TABLE;
    let about = json(filed)?;
    let sum = text_checksum(filed.id(), &[about.as_bytes(), filed.bytes()]);
    connection.prepare_cached(&format!("INSERT OR REPLACE INTO {table} VALUES (?1, ?2, ?3, ?4)"))?.execute(params![
        filed.id(),
        about,
        &filed.bytes()[..],
        sum
    ])?;
    Ok(filed.bytes().len() / PAGE + 2)
}

/// The dead letters that are tried again.
pub(crate) fn retried_letters(connection: &Connection) -> rusqlite::Result<Vec<u64>> {
    let query = r#"SELECT id FROM dead_letters WHERE about LIKE '%"retrying":"%' ORDER BY id"#;
    connection.prepare(query)?.query_map([], |row| row.get(0))?.collect()
}

/// The dead letters of each sink.
pub(crate) fn letters_of_sinks(connection: &Connection) -> Result<BTreeMap<String, Vec<u64>>, StoreError> {
    let mut letters: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let mut query = connection.prepare("SELECT id, about FROM dead_letters ORDER BY id")?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let letter: DeadLetter = about(row)?;
        letters.entry(letter.sink).or_default().push(letter.id);
    }
    Ok(letters)
}

/// The one of that number.
pub(crate) fn filed<T: Filed>(connection: &Connection, id: u64) -> Result<Option<T>, StoreError> {
    let Ok(id) = i64::try_from(id) else { return Ok(None) };
    let (table, bytes) = T::TABLE;
    let query = format!("SELECT id, about, {bytes}, checksum FROM {table} WHERE id = ?1");
    let mut query = connection.prepare_cached(&query)?;
    let mut rows = query.query([id])?;
    rows.next()?.map(|row| with_bytes(row, about(row)?)).transpose()
}

pub(crate) fn filed_page<T: Filed>(connection: &Connection, pick: &Pick) -> Result<Page<T>, StoreError> {
    let (table, bytes) = T::TABLE;
    let query = format!("SELECT id, about, {bytes}, checksum FROM {table} WHERE id > ?1 ORDER BY id");
    let mut query = connection.prepare_cached(&query)?;
    let mut rows = query.query([i64::try_from(pick.after).unwrap_or(i64::MAX)])?;
    let mut page = Page::new();
    while let Some(row) = rows.next()? {
        if page.is_full(pick) {
            return Ok(page);
        }
        let found = about(row)?;
        if page.wants(pick, &found) {
            page.push(if pick.whole { with_bytes(row, found)? } else { found });
        }
    }
    Ok(page.end())
}

/// What a row of `id, about, bytes, checksum` says, without its bytes.
fn about<T: Filed>(row: &rusqlite::Row) -> Result<T, StoreError> {
    let (id, about): (u64, String) = (row.get(0)?, row.get(1)?);
    let mut found: T = serde_json::from_str(&about).map_err(|_| damaged::<T>(id))?;
    found.put(id, Bytes::new());
    Ok(found)
}

/// The same with its bytes, if every bit of the row is as it was written.
fn with_bytes<T: Filed>(row: &rusqlite::Row, mut found: T) -> Result<T, StoreError> {
    let (id, about, bytes, sum): (u64, String, Vec<u8>, i64) = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
    if text_checksum(id, &[about.as_bytes(), &bytes]) != sum {
        return Err(damaged::<T>(id));
    }
    found.put(id, bytes.into());
    Ok(found)
}

fn damaged<T: Filed>(id: u64) -> StoreError {
    let (table, _) = T::TABLE;
    StoreError::Fatal(format!("row {id} of {table} is damaged"))
}

pub(crate) fn put_state(connection: &Connection, state: &StoreState) -> rusqlite::Result<()> {
    put_about_itself(connection, STATE, state)
}

pub(crate) fn put_about_itself(connection: &Connection, id: u64, value: &impl Serialize) -> rusqlite::Result<()> {
    let value = json(value)?;
    let sum = xxh3_64(value.as_bytes()).cast_signed();
    connection.prepare_cached("INSERT OR REPLACE INTO state VALUES (?1, ?2, ?3)")?.execute(params![id, value, sum])?;
    Ok(())
}

/// Every note, as it was written last; `None` when one is damaged.
pub(crate) fn notes(connection: &Connection) -> rusqlite::Result<Option<Vec<Note>>> {
    let mut rows = connection.prepare("SELECT id, state, checksum FROM state WHERE id > ?1 ORDER BY id")?;
    let rows = rows.query_map([SINKS], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let rows: Vec<(u64, String, i64)> = rows.collect::<Result<_, _>>()?;
    let note = |(id, text, sum): (u64, String, i64)| {
        let note: Note = serde_json::from_str(&text).ok()?;
        (xxh3_64(text.as_bytes()).cast_signed() == sum).then_some(Note { id, ..note })
    };
    Ok(rows.into_iter().map(note).collect())
}

pub(crate) fn put_note(connection: &Connection, note: &Note) -> rusqlite::Result<()> {
    put_about_itself(connection, note.id, note)
}

/// `None` when it is there but damaged.
pub(crate) fn about_itself<T: DeserializeOwned>(connection: &Connection, id: u64) -> rusqlite::Result<Option<T>> {
    let query = "SELECT state, checksum FROM state WHERE id = ?1";
    let (value, sum): (String, i64) = connection.query_row(query, [id], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let intact = xxh3_64(value.as_bytes()).cast_signed() == sum;
    Ok(intact.then(|| serde_json::from_str(&value).ok()).flatten())
}

/// Over a row's id and its texts and blobs, as it is stored.
pub(crate) fn text_checksum(id: u64, parts: &[&[u8]]) -> i64 {
    let mut hasher = Xxh3::new();
    hasher.update(&id.to_le_bytes());
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.digest().cast_signed()
}

pub(crate) fn json(value: &impl Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}
