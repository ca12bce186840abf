use super::{cursor::Cursor,letters::DeadLetters,link::{Link,NatsError},records::{PutError,Records}};
use crate::config::Config; use crate::journal::{Refused,SinkStatus}; use std::sync::Arc;
use tokio::sync::watch; use tokio_util::{sync::CancellationToken,task::TaskTracker};
#[derive(Debug)] pub(super) struct Delivery;
impl Delivery{
 pub(super) async fn start(_:(&Link,&Records),_:&DeadLetters,_:Arc<str>,_:&Config,_:watch::Receiver<bool>,_:&TaskTracker,_:CancellationToken)->Result<(Self,Vec<Cursor>),NatsError>{Ok((Self,vec![]))}
 pub(super) fn accounts(&self,_:u64)->Vec<SinkStatus>{vec![]}
 pub(super) async fn forget(&self,_:&str)->Result<bool,Refused>{Ok(false)}
 pub(super) async fn finish(&self){}
}
pub(super) async fn place(_:&Records,_:&str,_:u64)->Result<(),PutError>{Ok(())}
