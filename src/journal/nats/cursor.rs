use super::letters::Letters; use crate::journal::{Event,Gone,Read,Refused,Settled};
pub struct Cursor; #[derive(Clone)] pub struct Settler;
impl Cursor{ pub fn sink(&self)->&str{""} pub fn caught_up(&self)->bool{true} pub fn next(&self)->u64{0} pub fn may_deliver(&self)->bool{true} pub fn settler(&self)->Settler{Settler} pub fn letters(&self)->Letters{unreachable!()} pub async fn read(&mut self)->Result<Read,Gone>{Err(Gone)} }
impl Settler{ pub fn sink(&self)->&str{""} pub async fn settle(&self,_:u64,_:u64,_:Settled){} pub async fn dead_letter(&self,_:&Event,_:&str,_:u32)->Result<(),Refused>{Ok(())} pub async fn letter_delivered(&self,_:u64){} pub async fn letter_failed(&self,_:u64,_:&str,_:u32){} }
