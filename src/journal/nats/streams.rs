use super::link::{Link, NatsError};
use crate::config::Config;
pub(super) async fn ensure(link: &Link, config: &Config) -> Result<Vec<String>, NatsError> {
    let n = link.names();
    let nats = config.journal.nats.as_ref().unwrap();
    for (name, subject, extra) in [
        (n.events(), n.subjects(), serde_json::json!({"discard":"new","max_bytes":nats.max_bytes,"allow_direct":true,"duplicate_window":nats.duplicate_window.as_nanos() as u64,"deny_delete":true})),
        (n.state(), format!("{}.>", n.state()), serde_json::json!({"discard":"old","max_msgs_per_subject":1,"allow_msg_ttl":true})),
        (n.dead(), format!("{}.*", n.dead()), serde_json::json!({"discard":"new","allow_direct":true})),
        (n.quarantine(), format!("{}.*", n.quarantine()), serde_json::json!({"discard":"old","allow_direct":true})),
    ] {
        let mut c = serde_json::json!({"name":name,"subjects":[subject],"retention":"limits","storage":"file","num_replicas":nats.replicas});
        for (k, v) in extra.as_object().unwrap() { c[k] = v.clone(); }
        let _: serde_json::Value = link.api(&format!("STREAM.CREATE.{name}"), &c).await?;
    }
    Ok(vec![])
}
