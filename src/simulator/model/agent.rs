//! Agents log in, take issues, take breaks, log out; every five minutes their utilization is told.

use std::time::Duration;

use fastrand::Rng;
use time::OffsetDateTime;

use super::agenda::{Agenda, AgentAct, Ticket, Turn};
use super::chance::{between, pause, pick};
use super::course::Channel;
use super::message::{Clock, Event, Moment, Story, identifier};
use super::queue::Queue;
use super::utilization::{WINDOW, Window};
use super::words;
use crate::envelope::Feed;

/// What an agent is routed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Active,
    Away,
    WrappingUp,
    Offline,
}

#[derive(Debug)]
pub(super) struct Agent {
    me: usize,
    pub(super) id: String,
    pub(super) external_id: String,
    pub(super) given_name: &'static str,
    pub(super) family_name: &'static str,
    channel: Channel,
    /// Those the agent serves.
    pub(super) queues: Vec<usize>,
    pub(super) slots: u32,
    pub(super) status: Status,
    /// Issues assigned.
    load: u32,
    /// Slots taken: by issues assigned, and by those about to be.
    pub(super) taken: u32,
    /// Under which the agent stands among those with a free slot.
    pub(super) place: Option<(u32, Ticket)>,
    /// The next change of status, where one is due.
    pub(super) turn: Option<Ticket>,
    /// When the next break, or in the second half of a shift its end, is due.
    rest_at: Duration,
    second_half: bool,
    /// A call has ended, and what is to be written down after it takes so long.
    afterwork: Option<Duration>,
    /// Factor of the pauses while logging in.
    pace: f64,
    load_due: bool,
    since: Option<OffsetDateTime>,
    previous: Option<(Status, OffsetDateTime, OffsetDateTime)>,
    window: Option<Window>,
    story: Story,
}

impl Agent {
    pub(super) fn new(random: &mut Rng, me: usize, channel: Channel, queues: Vec<usize>, pace: f64) -> Self {
        let id = identifier(random);
        let mut story = Story::new(Feed::Activity);
        story.data.set("rep_id", &id);
        Self {
            me,
            id,
            external_id: format!("ext-{:06}", random.u32(..1_000_000)),
            given_name: pick(random, &words::GIVEN),
            family_name: pick(random, &words::FAMILY),
            channel,
            queues,
            slots: 1,
            status: Status::Offline,
            load: 0,
            taken: 0,
            place: None,
            turn: None,
            rest_at: Duration::ZERO,
            second_half: false,
            afterwork: None,
            pace,
            load_due: false,
            since: None,
            previous: None,
            window: None,
            story,
        }
    }

    pub(super) fn name(&self) -> String {
        format!("{} {}", self.given_name, self.family_name)
    }

    /// The name that customers see.
    pub(super) fn display_name(&self) -> String {
        let initial: String = self.family_name.chars().take(1).collect();
        format!("{} {initial}.", self.given_name)
    }

    pub(super) fn is_active(&self) -> bool {
        self.status == Status::Active
    }

    pub(super) fn can_take(&self) -> bool {
        self.is_active() && self.afterwork.is_none() && self.taken < self.slots
    }

    /// An issue, for which a slot was taken before, is assigned.
    pub(super) fn assigned(&mut self, agenda: &mut Agenda) {
        self.spend(agenda.now());
        self.load += 1;
        self.load_changed(agenda);
    }

    /// An assigned issue leaves the agent, who has to write things down at this pace.
    pub(super) fn released(&mut self, random: &mut Rng, agenda: &mut Agenda, pace: f64) {
        self.spend(agenda.now());
        self.load -= 1;
        self.taken -= 1;
        self.load_changed(agenda);
        if self.status == Status::Active && self.channel == Channel::Voice {
            self.afterwork = Some(pause(random, 20.0 * pace));
            self.turn_after(agenda, Duration::from_millis(40).mul_f64(pace));
        } else if self.status == Status::WrappingUp && self.taken == 0 {
            self.turn_after(agenda, pause(random, 30.0));
        }
    }

    /// Goes over to the next status.
    pub(super) fn turn(&mut self, random: &mut Rng, agenda: &mut Agenda, moment: Moment) {
        let now = agenda.now();
        self.spend(now);
        self.turn = None;
        let before = self.status;
        self.status = match self.status {
            Status::Offline => {
                self.second_half = false;
                self.rest_at = now + between(random, 50, 100);
                self.open_window(random, agenda);
                Status::Active
            }
            Status::Active if self.afterwork.is_some() => Status::WrappingUp,
            Status::Active => self.rest(),
            Status::Away => {
                self.second_half = true;
                self.rest_at = now + between(random, 50, 100);
                Status::Active
            }
            Status::WrappingUp if self.afterwork.take().is_none() => Status::Offline,
            Status::WrappingUp if now >= self.rest_at => self.rest(),
            Status::WrappingUp => Status::Active,
        };
        match (self.status, self.afterwork) {
            (Status::Active, _) => self.turn_after(agenda, self.rest_at.saturating_sub(now)),
            (Status::Away, _) => self.turn_after(agenda, between(random, 10, 20)),
            (Status::WrappingUp, Some(time)) => self.turn_after(agenda, time),
            // Whoever leaves sees to all issues first.
            (Status::WrappingUp, None) if self.taken > 0 => {}
            (Status::WrappingUp, None) => self.turn_after(agenda, pause(random, 30.0)),
            (Status::Offline, _) => {
                agenda.after(between(random, 30, 60), Turn::Agent(self.me, AgentAct::Introduce));
            }
        }
        let happened = self.story.moment(moment).happened;
        let since = self.since.replace(happened).unwrap_or(happened);
        self.previous = Some((before, since, happened));
        for (act, mean) in [(AgentAct::Previous, 0.006), (AgentAct::Status, 0.02)] {
            agenda.after(pause(random, mean * self.pace), Turn::Agent(self.me, act));
        }
        if before == Status::Offline {
            self.load_changed(agenda);
        }
    }

    /// Tells of `act`, and does it unless it is a turn.
    pub(super) fn tell(
        &mut self,
        act: AgentAct,
        random: &mut Rng,
        agenda: &mut Agenda,
        moment: Moment,
        queues: &[Queue],
    ) -> Event {
        let moment = self.story.moment(moment);
        let at = Clock(moment.happened);
        let mut next = |act| agenda.after(pause(random, self.pace), Turn::Agent(self.me, act));
        let event_type = match act {
            AgentAct::Introduce => {
                next(AgentAct::Capacity);
                self.introduce();
                "agent_activity_identity_updated"
            }
            AgentAct::Capacity => {
                next(AgentAct::Membership);
                self.slots = if self.channel == Channel::Chat { random.u32(2..=5) } else { 1 };
                self.story.data.set("max_slots", self.slots);
                "agent_activity_capacity_updated"
            }
            AgentAct::Membership => {
                self.turn = Some(next(AgentAct::Turn));
                let served = || self.queues.iter().map(|&queue| &queues[queue]);
                self.story.data.set("queue_ids", served().map(|queue| queue.id.as_str()).collect::<Vec<_>>());
                self.story.data.set("queue_names", served().map(|queue| queue.name).collect::<Vec<_>>());
                "agent_activity_queue_membership"
            }
            AgentAct::Turn => {
                self.story.details.set("routing_status_updated_ts", at);
                self.story.details.set("routing_status", self.status.name());
                "agent_activity_routing_status_updated"
            }
            AgentAct::Previous => {
                self.tell_previous(at);
                "agent_activity_previous_routing_status"
            }
            AgentAct::Status => {
                self.story.details.set("status_updated_ts", at);
                self.story.details.set("status_description", self.description());
                "agent_activity_status_updated"
            }
            AgentAct::Load => {
                self.load_due = false;
                self.story.details.set("assignment_load_updated_ts", at);
                self.story.details.set("assigned_customer_ct", self.load);
                "agent_activity_assignment_load_updated"
            }
            AgentAct::Utilization => {
                self.tell_utilization(agenda, moment);
                "agent_activity_utilization_5_min"
            }
        };
        self.story.event(event_type, random, moment)
    }

    fn introduce(&mut self) {
        let (name, display_name) = (self.name(), self.display_name());
        let data = &mut self.story.data;
        data.set("desk_mode", "UNKNOWN");
        data.set("rep_name", name);
        data.set("agent_given_name", self.given_name);
        data.set("agent_family_name", self.family_name);
        data.set("agent_display_name", display_name);
        data.set("external_rep_id", &self.external_id);
    }

    fn tell_previous(&mut self, at: Clock) {
        let Some((status, since, until)) = self.previous else { return };
        let details = &mut self.story.details;
        details.set("previous_routing_status_updated_ts", at);
        details.set("previous_routing_status", status.name());
        details.set("previous_routing_status_duration_sec", (until - since).whole_seconds());
        details.set("previous_routing_status_start_ts", Clock(since));
    }

    /// The window is one of the model's clock, so it has 300 seconds whatever the stamps say.
    fn tell_utilization(&mut self, agenda: &mut Agenda, moment: Moment) {
        self.spend(agenda.now());
        let Some(window) = &mut self.window else { return };
        let (spent, any) = window.end();
        let details = &mut self.story.details;
        details.set("utilization_5_min_updated_ts", Clock(moment.happened));
        details.set("utilization_5_min_window_start_ts", Clock(moment.happened - WINDOW));
        details.set("utilization_5_min_window_end_ts", Clock(moment.happened));
        details.set("utilization_5_min_any_status", any);
        for (status, seconds) in Status::ALL.into_iter().zip(spent) {
            details.set(status.utilization(), seconds);
        }
        if self.status == Status::Offline {
            self.window = None;
        } else {
            agenda.after(WINDOW, Turn::Agent(self.me, AgentAct::Utilization));
        }
    }

    /// Windows do not wait for logins, so the first one began before.
    fn open_window(&mut self, random: &mut Rng, agenda: &mut Agenda) {
        if self.window.is_none() {
            let left = between(random, 1, 5).mul_f64(self.pace);
            self.window = Some(Window::opened(agenda.now(), left, Status::Offline.index(), self.slots));
            agenda.after(left, Turn::Agent(self.me, AgentAct::Utilization));
        }
    }

    /// How a break, or the end of a shift, begins.
    fn rest(&self) -> Status {
        if self.second_half { Status::WrappingUp } else { Status::Away }
    }

    fn spend(&mut self, now: Duration) {
        if let Some(window) = &mut self.window {
            window.spend(now, self.status.index(), self.slots, self.load);
        }
    }

    fn turn_after(&mut self, agenda: &mut Agenda, delay: Duration) {
        self.turn = Some(agenda.after(delay, Turn::Agent(self.me, AgentAct::Turn)));
    }

    fn load_changed(&mut self, agenda: &mut Agenda) {
        if !std::mem::replace(&mut self.load_due, true) {
            agenda.after(Duration::from_millis(15).mul_f64(self.pace), Turn::Agent(self.me, AgentAct::Load));
        }
    }

    fn description(&self) -> &'static str {
        match self.status {
            Status::Active => "Available",
            Status::Away => "Coffee & \"quiet\" break",
            Status::WrappingUp if self.afterwork.is_some() => "After-call work",
            Status::WrappingUp => "Finishing up",
            Status::Offline => "Logged out",
        }
    }
}

impl Status {
    const ALL: [Self; 4] = [Self::Active, Self::Away, Self::WrappingUp, Self::Offline];

    fn index(self) -> usize {
        match self {
            Self::Active => 0,
            Self::Away => 1,
            Self::WrappingUp => 2,
            Self::Offline => 3,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Away => "AWAY",
            Self::WrappingUp => "WRAPPING_UP",
            Self::Offline => "OFFLINE",
        }
    }

    /// The field of the time spent in it.
    fn utilization(self) -> &'static str {
        match self {
            Self::Active => "utilization_5_min_active",
            Self::Away => "utilization_5_min_away",
            Self::WrappingUp => "utilization_5_min_wrapping_up",
            Self::Offline => "utilization_5_min_offline",
        }
    }
}
