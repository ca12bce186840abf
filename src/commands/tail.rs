//! `tail`: looks on at the events that come in.

use std::path::PathBuf;

use form_urlencoded::Serializer;

use super::client::{Admin, Go};
use super::{Failure, print_on, tell};

/// Look on at the events as they come in, as JSON lines; it takes none away from any sink
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: asapp-receiver tail --feeds journey --event-types 'QUEUE*' --from 10m")]
pub struct Args {
    #[command(flatten)]
    pub admin: Admin,
    /// Begin with what is kept from here on: a sequence, a time (2026-11-22T10:00:00Z), or how long ago (90m)
    #[arg(long, value_name = "PLACE")]
    pub from: Option<String>,
    #[command(flatten)]
    pub filter: Filter,
}

/// The filter words of a sink; each may be repeated, or hold several separated by commas.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Filter (each may be repeated, or hold several, separated by commas)")]
pub struct Filter {
    /// activity, journey, queue, or a full name
    #[arg(long, value_name = "FEED", value_delimiter = ',')]
    pub feeds: Vec<String>,
    /// Only these; * and ? are wildcards
    #[arg(long, value_name = "TYPE", value_delimiter = ',')]
    pub event_types: Vec<String>,
    /// Not these; * and ? are wildcards
    #[arg(long, value_name = "TYPE", value_delimiter = ',')]
    pub exclude_event_types: Vec<String>,
    /// Only of these companies
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    pub company_ids: Vec<String>,
    /// Only of these segments
    #[arg(long, value_name = "SEGMENT", value_delimiter = ',')]
    pub company_segments: Vec<String>,
    /// Only of these subdivisions
    #[arg(long, value_name = "SUBDIVISION", value_delimiter = ',')]
    pub company_subdivisions: Vec<String>,
}

impl Filter {
    /// Every word that was given, with its values.
    pub(super) fn words(&self) -> impl Iterator<Item = (&'static str, &[String])> {
        let words: [(&str, &[String]); 6] = [
            ("feeds", &self.feeds),
            ("event_types", &self.event_types),
            ("exclude_event_types", &self.exclude_event_types),
            ("company_ids", &self.company_ids),
            ("company_segments", &self.company_segments),
            ("company_subdivisions", &self.company_subdivisions),
        ];
        words.into_iter().filter(|(_, values)| !values.is_empty())
    }
}

/// Prints a line for each event until its reader, the receiver or a signal ends it.
///
/// # Errors
/// When there is no receiver, it refuses, or it goes away.
pub async fn run(args: Args, files: &[PathBuf]) -> Result<(), Failure> {
    let client = args.admin.client(files)?;
    let mut query = Serializer::new(String::new());
    for (word, values) in args.filter.words() {
        query.extend_pairs(values.iter().map(|value| (word, value)));
    }
    if let Some(from) = &args.from {
        query.append_pair("from", from);
    }
    let mut messages = Messages::default();
    let mut wanted = true;
    let path = format!("/api/v1/tail?{}", query.finish());
    let looked_on = client.stream(&path, async |piece| {
        let (lines, skipped) = messages.take(&piece);
        if skipped > 0 {
            tell(&format!("tail: {skipped} events skipped: they came faster than they were read here\n"));
        }
        wanted = lines.is_empty() || print_on(&lines)? == Go::On;
        Ok(if wanted { Go::On } else { Go::Away })
    });
    looked_on.await?;
    if wanted { Err(client.failure("the receiver has ended the tail: it is being stopped")) } else { Ok(()) }
}

/// Server-sent events, in pieces.
#[derive(Default)]
struct Messages {
    /// The beginning of a message whose end is still to come.
    rest: Vec<u8>,
}

impl Messages {
    /// The events that are whole now, a line each, and how many were skipped.
    fn take(&mut self, piece: &[u8]) -> (Vec<u8>, u64) {
        // What was there before has no end in it, save perhaps the first half of one.
        let seen = self.rest.len().saturating_sub(1);
        self.rest.extend_from_slice(piece);
        let Some(end) = self.rest[seen..].windows(2).rposition(|two| two == b"\n\n") else { return (Vec::new(), 0) };
        let rest = self.rest.split_off(seen + end + 2);
        let whole = std::mem::replace(&mut self.rest, rest);
        let (mut lines, mut skipped, mut is_event) = (Vec::new(), 0, true);
        for line in whole.split(|&byte| byte == b'\n') {
            match line {
                b"" => is_event = true,
                b"event: skipped" => is_event = false,
                _ => match line.strip_prefix(b"data: ") {
                    Some(data) if is_event => {
                        lines.extend_from_slice(data);
                        lines.push(b'\n');
                    }
                    Some(data) => {
                        let data: serde_json::Value = serde_json::from_slice(data).unwrap_or_default();
                        skipped += data["skipped"].as_u64().unwrap_or_default();
                    }
                    None => {}
                },
            }
        }
        (lines, skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_whole_however_they_are_cut() {
        let text =
            b": tail\n\nid: 1\ndata: {\"a\": 1}\n\nevent: skipped\ndata: {\"skipped\":7}\n\nid: 9\ndata: {}\n\nid: 10";
        for size in 1..=text.len() {
            let mut messages = Messages::default();
            let (mut lines, mut skipped) = (Vec::new(), 0);
            for piece in text.chunks(size) {
                let (more, passed) = messages.take(piece);
                lines.extend(more);
                skipped += passed;
            }
            assert_eq!((&*lines, skipped), (&b"{\"a\": 1}\n{}\n"[..], 7), "pieces of {size}");
        }
    }
}
