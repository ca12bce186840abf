//! What the invented company, its agents and its customers are called and say.

use super::course::Channel;

pub(super) const GIVEN: [&str; 24] = [
    "Avelie",
    "Brunor",
    "Cérane",
    "Davick",
    "Elowith",
    "Fennimar",
    "Gisabel",
    "Horvane",
    "Ilmara",
    "Jorvin",
    "Kessaly",
    "Lorimond",
    "Mirövan",
    "Nadelie",
    "Østrin",
    "Pélloran",
    "Quessa",
    "Rovimar",
    "Sünnelie",
    "Tamorin",
    "Ulvane",
    "Vésmira",
    "Wendorin",
    "Žilmara",
];
pub(super) const FAMILY: [&str; 20] = [
    "Ambleforth",
    "Brackenry",
    "Coldmarsh",
    "Dunwhistle",
    "Elderquay",
    "Fernhollow",
    "Greywick",
    "Hartlemoor",
    "Inglebrand",
    "Juniperay",
    "Kestrelsey",
    "Lindenwäld",
    "Mossgårdh",
    "Nettlecombe-Vray",
    "O'Quillane",
    "Pondersby",
    "Quarrendel",
    "Rushmère",
    "Saltonby",
    "Thistlemøre",
];

/// Queues of a channel; an intent names one by its place.
pub(super) fn queues(channel: Channel) -> [&'static str; 3] {
    match channel {
        Channel::Chat => ["Billing chat", "Fibre faults chat", "Orders & moves"],
        Channel::Voice => ["Billing hotline", "Störungen (Technik)", "Retention \"Gold\" line"],
    }
}

#[derive(Debug)]
pub(super) struct Intent {
    pub(super) code: &'static str,
    pub(super) business: &'static str,
    pub(super) flow: &'static str,
    pub(super) business_flow: &'static str,
    /// The place of its queue in its channel.
    pub(super) queue: usize,
    pub(super) summary: &'static str,
}

pub(super) const INTENTS: [Intent; 6] = [
    Intent {
        code: "BILL_TOO_HIGH",
        business: "Billing question",
        flow: "explain_bill",
        business_flow: "Explain my bill",
        queue: 0,
        summary: "Customer asked why the last bill was higher than \"usual\".\nAgent explained the one-off set-up fee and \
                  offered to spread it over three months; customer agreed.",
    },
    Intent {
        code: "PAYMENT_FAILED",
        business: "Failed payment",
        flow: "retry_payment",
        business_flow: "Pay again",
        queue: 0,
        summary: "The direct debit was returned. Agent took the new account, removed the late fee of 7,50 € as a courtesy \
                  and confirmed by e-mail.",
    },
    Intent {
        code: "NO_INTERNET",
        business: "Fibre fault",
        flow: "line_test",
        business_flow: "Test my line",
        queue: 1,
        summary: "No signal since the morning; the router's light stays red. Line test failed at the street cabinet. \
                  Technician booked, “between 8 and 10”, customer will be called before.",
    },
    Intent {
        code: "SLOW_WIFI",
        business: "Slow Wi-Fi",
        flow: "wifi_check",
        business_flow: "Check my Wi-Fi",
        queue: 1,
        summary: "Wi-Fi drops in the upper floor.\tAgent changed the channel, speed is back at 480 Mbit/s. Customer was told \
                  about mesh repeaters (no purchase).",
    },
    Intent {
        code: "MOVE_HOUSE",
        business: "Order change",
        flow: "move_contract",
        business_flow: "I am moving",
        queue: 2,
        summary: "Customer moves at the end of the month & wants to keep the plan. New address is covered; the order was \
                  placed, the old line ends on the same day. Naïve question about the router\\modem was answered.",
    },
    Intent {
        code: "CANCEL_CONTRACT",
        business: "Cancellation",
        flow: "retain_customer",
        business_flow: "Cancel my contract",
        queue: 2,
        summary: "Customer wanted to cancel, found the price \"too much for what it is\". Agent offered 20 % off for a year; \
                  customer will think it over until Friday.",
    },
];

/// Key, field, name, and what the values look like.
pub(super) const PARAMETERS: [(&str, &str, &str, &[&str]); 10] = [
    (
        "customer_params_key_name_01",
        "customer_params_field_01",
        "plan",
        &["Fibre 250", "Fibre 1000", "Mobile M", "Düo L"],
    ),
    ("customer_params_key_name_02", "customer_params_field_02", "region", &["north", "coast", "hills", "Älvedal"]),
    ("customer_params_key_name_03", "customer_params_field_03", "tenure_years", &["0", "1", "3", "7", "12"]),
    ("customer_params_key_name_04", "customer_params_field_04", "contract_state", &["active", "in notice", "on hold"]),
    ("customer_params_key_name_05", "customer_params_field_05", "router", &["FB-7 rev. B", "FB-9", "own device"]),
    ("customer_params_key_name_06", "customer_params_field_06", "language", &["en-GB", "de-DE", "fr-FR"]),
    ("customer_params_key_name_07", "customer_params_field_07", "open_orders", &["0", "1", "2"]),
    ("customer_params_key_name_08", "customer_params_field_08", "open_tickets", &["0", "1", "4"]),
    ("customer_params_key_name_09", "customer_params_field_09", "page", &["/bills?month=last", "/help/line", "/"]),
    (
        "customer_params_key_name_10",
        "customer_params_field_10",
        "campaign",
        &["none", "spring \"double\" data", "été+"],
    ),
];

pub(super) const NODES: [(&str, &str); 8] = [
    ("message", "greet_customer"),
    ("question", "ask_topic"),
    ("question", "confirm_address"),
    ("api_call", "look_up_account"),
    ("message", "show_outage_map"),
    ("question", "did_this_help"),
    ("api_call", "run_line_test"),
    ("message", "offer_agent"),
];

/// Question, category, type, answers.
pub(super) const SURVEY: [(&str, &str, &str, &[&str]); 3] = [
    ("How did we do?", "satisfaction", "rating", &["1", "2", "3", "4", "5"]),
    ("Was your question answered?", "resolution", "choice", &["yes", "no", "partly"]),
    (
        "Anything else you'd like to say?",
        "comment",
        "text",
        &[
            "",
            "Très bien, merci !",
            "Had to ask twice, then it was \"fine\".",
            "Schnell & freundlich – danke 👍",
            "The line in c:\\settings was confusing",
        ],
    ),
];

pub(super) const DISPOSITION: [(&str, &[&str]); 3] = [
    ("outcome", &["solved", "solved \"for now\"", "passed on", "not solved"]),
    ("follow_up", &["no", "call back", "letter"]),
    ("product", &["Fibre", "Mobile", "Télévision"]),
];

pub(super) const FILES: [(&str, u32, u32); 4] = [
    ("photo_{}.jpg", 4032, 3024),
    ("écran {}.png", 1280, 960),
    ("bill (copy) {}.png", 1240, 1754),
    ("router \"back\" {}.jpg", 1600, 1200),
];

pub(super) const CHAT_CLIENTS: [&str; 4] =
    ["web/4.2.0", "ios/7.1.3; phone", "android/7.1.0; tablet", "sms-gateway/2.0"];
pub(super) const VOICE_CLIENTS: [&str; 2] = ["voice/2.9.0", "voice/3.0.1; callback"];
