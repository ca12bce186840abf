//! `tail`: looks on at the events that come in.

use std::path::PathBuf;

use form_urlencoded::Serializer;

use super::client::Admin;
use super::output::{Failure, Go, print_on, tell, while_read};

/// Look on at the events as they come in, as JSON lines; it takes none away from any sink
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example: asapp-receiver tail --feeds journey --event-types 'QUEUE*' --from 10m

The first ten of an hour, and no more: … tail --from 2026-11-22T10:00:00Z --to 2026-11-22T11:00:00Z --limit 10")]
pub struct Args {
    #[command(flatten)]
    pub admin: Admin,
    /// Begin with what is kept from here on: a sequence, a time (2026-11-22T10:00:00Z), or how long ago (90m)
    #[arg(long, value_name = "PLACE")]
    pub from: Option<String>,
    /// End with the event of this sequence, or with what was received by this time; begin with the oldest event that is
    /// kept, unless --from says otherwise
    #[arg(long, value_name = "PLACE")]
    pub to: Option<String>,
    /// End after so many events
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// End with the newest event there is now; begin with the oldest one that is kept, unless --from says otherwise
    #[arg(long)]
    pub no_follow: bool,
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
    query.extend_pairs(args.from.iter().map(|from| ("from", from)));
    query.extend_pairs(args.to.iter().map(|to| ("to", to)));
    query.extend_pairs(args.limit.map(|limit| ("limit", limit.to_string())));
    if args.no_follow {
        query.append_pair("follow", "false");
    }
    let path = format!("/api/v1/tail?{}", query.finish());
    while_read(async {
        let (mut messages, mut over) = (Messages::default(), false);
        let looked_on = client.stream(&path, async |piece| {
            let Taken { lines, skipped, end } = messages.take(&piece);
            if skipped > 0 {
                tell(&format!("tail: {skipped} events skipped: they came faster than they were read here\n"));
            }
            over = end || (!lines.is_empty() && print_on(&lines)? == Go::Away);
            Ok(if over { Go::Away } else { Go::On })
        });
        looked_on.await?;
        if over { Ok(()) } else { Err(client.failure("the receiver has ended the tail: it is being stopped")) }
    })
    .await
}

/// What a piece came to.
#[derive(Default)]
struct Taken {
    /// The events that are whole now, a line each.
    lines: Vec<u8>,
    skipped: u64,
    /// There will be no more.
    end: bool,
}

/// Server-sent events, in pieces.
#[derive(Default)]
struct Messages {
    /// The beginning of a message whose end is still to come.
    rest: Vec<u8>,
}

impl Messages {
    fn take(&mut self, piece: &[u8]) -> Taken {
        // What was there before has no end in it, save perhaps the first half of one.
        let seen = self.rest.len().saturating_sub(1);
        self.rest.extend_from_slice(piece);
        let Some(end) = self.rest[seen..].windows(2).rposition(|two| two == b"\n\n") else { return Taken::default() };
        let rest = self.rest.split_off(seen + end + 2);
        let whole = std::mem::replace(&mut self.rest, rest);
        let (mut taken, mut is_event) = (Taken::default(), true);
        for line in whole.split(|&byte| byte == b'\n') {
            match line {
                b"" => is_event = true,
                b"event: skipped" => is_event = false,
                b"event: end" => {
                    is_event = false;
                    taken.end = true;
                }
                _ => match line.strip_prefix(b"data: ") {
                    Some(data) if is_event => {
                        taken.lines.extend_from_slice(data);
                        taken.lines.push(b'\n');
                    }
                    Some(data) => {
                        let data: serde_json::Value = serde_json::from_slice(data).unwrap_or_default();
                        taken.skipped += data["skipped"].as_u64().unwrap_or_default();
                    }
                    None => {}
                },
            }
        }
        taken
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
                let taken = messages.take(piece);
                assert!(!taken.end, "pieces of {size}");
                lines.extend(taken.lines);
                skipped += taken.skipped;
            }
            assert_eq!((&*lines, skipped), (&b"{\"a\": 1}\n{}\n"[..], 7), "pieces of {size}");
            let end = b"\ndata: {}\n\nevent: end\ndata: {\"reason\":\"limit\"}\n\n".chunks(size);
            let ends: Vec<Taken> = end.map(|piece| messages.take(piece)).collect();
            assert_eq!(ends.iter().flat_map(|taken| taken.lines.clone()).collect::<Vec<_>>(), b"{}\n");
            assert_eq!(ends.iter().filter(|taken| taken.end).count(), 1, "pieces of {size}");
        }
    }
}
