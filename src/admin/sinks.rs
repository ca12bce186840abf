//! `/api/v1/sinks/NAME`: what the journal keeps for a sink, and how to give it up.

use axum::extract::{Path, State};
use axum::response::Response;

use super::api::{Kept, KeptFor};
use super::call;
use super::view::View;
use crate::journal::{Journal, LettersOf, MAX_LIST, Refused, SinkStatus};
use crate::problem::{Kind, Problem};

pub(super) async fn show(State(view): State<View>, Path(name): Path<String>) -> Result<Response, Problem> {
    let journal = view.insight()?.journal;
    let sink = known(&journal, &name).ok_or_else(|| Problem::new(Kind::NotFound, "no sink has this name"))?;
    Ok(call::answer(&kept(&journal, &name, &sink).await?))
}

pub(super) async fn forget(State(view): State<View>, Path(name): Path<String>) -> Result<Response, Problem> {
    let journal = view.insight()?.journal;
    let none = "no sink of this name is gone from the settings: one that is configured keeps its place";
    let none = || Problem::new(Kind::NotFound, none);
    let sink = known(&journal, &name).filter(|sink| sink.gone).ok_or_else(none)?;
    let lost = kept(&journal, &name, &sink).await?;
    if !journal.forget(&name).await? {
        return Err(none());
    }
    tracing::warn!(sink = name, pending = lost.pending, dead_letters = lost.dead_letters, "a sink was forgotten");
    Ok(call::answer(&Kept { forgotten: Some(true), ..lost }))
}

fn known(journal: &Journal, name: &str) -> Option<SinkStatus> {
    journal.status().sinks.into_iter().find(|sink| *sink.name == *name)
}

async fn kept(journal: &Journal, name: &str, sink: &SinkStatus) -> Result<Kept, Refused> {
    let state = if sink.gone { KeptFor::Gone } else { KeptFor::Configured };
    let dead_letters = dead_letters(journal, name).await?;
    Ok(Kept { name: name.to_owned(), state, pending: sink.account.pending, dead_letters, forgotten: None })
}

/// Counts them a page at a time, so that no more than a page is in memory.
async fn dead_letters(journal: &Journal, sink: &str) -> Result<u64, Refused> {
    let (mut after, mut count) = (0, 0);
    loop {
        let page = LettersOf { sink: Some(sink.to_owned()), after, limit: MAX_LIST };
        let page = journal.dead_letters(page).await?;
        let Some(last) = page.last() else { return Ok(count) };
        after = last.id;
        count += page.len() as u64;
    }
}
