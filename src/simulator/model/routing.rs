//! How issues get through queues to agents.

use std::time::Duration;

use super::Model;
use super::agenda::Turn;
use super::chance::pause;
use super::course::{Channel, GIVEN_UP, TURNED_AWAY};
use super::message::{Event, Moment};

/// Mean seconds a customer is willing to wait for an agent.
const PATIENCE: f64 = 300.0;
const QUEUES_PER_CHANNEL: usize = 3;

impl Model {
    /// The next step of an issue.
    pub(super) fn step(&mut self, place: usize, moment: Moment) -> Event {
        let Self { random, agenda, issues, agents, queues, .. } = self;
        let issue = &mut issues[place];
        if std::mem::take(&mut issue.waiting) {
            issue.divert(random, GIVEN_UP);
        }
        if issue.next() == Some("QUEUED") {
            // Where its own queue is closed, the channel's first one takes it.
            let first = match issue.channel {
                Channel::Chat => 0,
                Channel::Voice => QUEUES_PER_CHANNEL,
            };
            let open = [first + issue.intent.queue, first].into_iter().find(|&queue| !queues[queue].is_closed());
            match open {
                Some(queue) => issue.queue = queue,
                None => issue.divert(random, TURNED_AWAY),
            }
        }
        let mut released = None;
        match issue.next() {
            Some("QUEUED") => queues[issue.queue].entered(agenda),
            Some("QUEUE_ABANDONED") => queues[issue.queue].left(agenda),
            Some("ASSIGNED") => {
                queues[issue.queue].left(agenda);
                agents[issue.agent].assigned(agenda);
                issue.assigned_at = moment.at;
            }
            Some("ASSIGNMENT_ENDED") => {
                let took = moment.at.saturating_sub(issue.assigned_at).div_f64(issue.pace);
                queues[issue.queue].handled(took);
                agents[issue.agent].released(random, agenda, issue.pace);
                released = Some(issue.agent);
            }
            _ => {}
        }
        let event = issue.happen(random, moment, &queues[issue.queue], &agents[issue.agent]);
        match issue.next() {
            None => {
                issue.clear();
                self.over.push(place);
                if std::mem::take(&mut self.held) {
                    self.agenda.after(Duration::ZERO, Turn::Arrival);
                }
            }
            Some("ASSIGNED") => {
                issue.waiting = true;
                // Whoever comes first, waits as long as it takes.
                let patience = if issue.first { Duration::MAX } else { pause(random, PATIENCE) };
                issue.ticket = agenda.after(patience, Turn::Issue(place));
                let queue = &mut queues[issue.queue];
                queue.waiting.push_back((issue.ticket, place));
                if let Some(&(_, _, agent)) = queue.free.first() {
                    self.serve(agent);
                }
            }
            Some(_) => issue.ticket = agenda.after(issue.pause(random), Turn::Issue(place)),
        }
        if let Some(agent) = released {
            self.serve(agent);
        }
        event
    }

    /// The next status of an agent.
    pub(super) fn turn(&mut self, agent: usize, moment: Moment) {
        let Self { random, agenda, agents, queues, .. } = self;
        let turning = &mut agents[agent];
        let slots = u64::from(turning.slots);
        let was_active = turning.is_active();
        turning.turn(random, agenda, moment);
        for &queue in &turning.queues {
            match (was_active, turning.is_active()) {
                (false, true) => queues[queue].slots += slots,
                (true, false) => queues[queue].slots -= slots,
                _ => {}
            }
        }
        self.serve(agent);
    }

    /// Gives an agent, as long as there is a free slot, the issue that waits longest in the agent's queues.
    fn serve(&mut self, agent: usize) {
        while self.agents[agent].can_take() {
            let longest = self.agents[agent].queues.iter().filter_map(|&queue| {
                let waiting = &mut self.queues[queue].waiting;
                // Those that gave up are still in it.
                while waiting.front().is_some_and(|&(ticket, place)| self.issues[place].ticket != ticket) {
                    waiting.pop_front();
                }
                waiting.front().map(|&(ticket, place)| (ticket, place, queue))
            });
            let Some((_, place, queue)) = longest.min() else { break };
            self.queues[queue].waiting.pop_front();
            self.agents[agent].taken += 1;
            let issue = &mut self.issues[place];
            issue.waiting = false;
            issue.agent = agent;
            issue.ticket = self.agenda.after(issue.pause(&mut self.random), Turn::Issue(place));
        }
        self.line_up(agent);
    }

    /// Puts an agent in the right place among those with a free slot, or takes the agent out.
    fn line_up(&mut self, agent: usize) {
        let Self { agenda, agents, queues, .. } = self;
        let agent_ = &mut agents[agent];
        if let Some((taken, since)) = agent_.place.take() {
            for &queue in &agent_.queues {
                queues[queue].free.remove(&(taken, since, agent));
            }
        }
        if agent_.can_take() {
            let since = agenda.ticket();
            agent_.place = Some((agent_.taken, since));
            for &queue in &agent_.queues {
                queues[queue].free.insert((agent_.taken, since, agent));
            }
        }
    }
}
