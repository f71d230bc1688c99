//! A healthy Redis client: it sets, gets, counts and deletes keys of its own and knows every reply.

use std::{collections::HashMap, time::Duration};

use super::client::{Client, Reply};
use crate::{
    load::{HealthyClient, Random, Surprise},
    net::Address,
};

const KEYS: u64 = 200;
const LONGEST_VALUE: u64 = 300;

/// A healthy client and its model.
#[derive(Debug)]
pub struct Healthy {
    client: Client,
    ident: usize,
    serial: u64,
    counter: i64,
    model: HashMap<String, Vec<u8>>,
}

impl Healthy {
    fn expect(&mut self, command: &[&[u8]], expected: &Reply) -> Result<(), Surprise> {
        let reply = self.client.call(command)?;
        if &reply == expected {
            return Ok(());
        }
        let words: Vec<_> = command
            .iter()
            .map(|word| String::from_utf8_lossy(word))
            .collect();
        Err(format!("{}: expected {expected:?}, got {reply:?}", words.join(" ")).into())
    }

    fn expect_value(&mut self, key: &str) -> Result<(), Surprise> {
        let expected = self
            .model
            .get(key)
            .map_or(Reply::Nil, |value| Reply::Bulk(value.clone()));
        self.expect(&[b"GET", key.as_bytes()], &expected)
    }

    fn counter_key(&self) -> String {
        format!("n{}", self.ident)
    }
}

impl HealthyClient for Healthy {
    fn connect(address: &Address, ident: usize, patience: Duration) -> Result<Self, Surprise> {
        let client = Client::connect(address, patience)?;
        Ok(Self {
            client,
            ident,
            serial: 0,
            counter: 0,
            model: HashMap::new(),
        })
    }

    fn step(&mut self, random: &mut Random) -> Result<(), Surprise> {
        let key = format!("u{}:{}", self.ident, random.below(KEYS));
        match random.below(10) {
            0..4 => {
                self.serial += 1;
                let padding = "x".repeat(random.below(LONGEST_VALUE) as usize);
                let value = format!("{}-{}-{padding}", self.ident, self.serial).into_bytes();
                self.expect(
                    &[b"SET", key.as_bytes(), &value],
                    &Reply::Simple("OK".into()),
                )?;
                self.model.insert(key, value);
            }
            4 => {
                let existed = i64::from(self.model.remove(&key).is_some());
                self.expect(&[b"DEL", key.as_bytes()], &Reply::Integer(existed))?;
            }
            5 => {
                self.counter += 1;
                let counter = Reply::Integer(self.counter);
                self.expect(&[b"INCR", self.counter_key().as_bytes()], &counter)?;
            }
            _ => self.expect_value(&key)?,
        }
        Ok(())
    }

    fn check_all(&mut self) -> Result<(), Surprise> {
        let keys: Vec<String> = self.model.keys().cloned().collect();
        for key in keys {
            self.expect_value(&key)
                .map_err(|surprise| format!("at the end: {surprise}"))?;
        }
        if self.counter > 0 {
            let expected = Reply::Bulk(self.counter.to_string().into_bytes());
            self.expect(&[b"GET", self.counter_key().as_bytes()], &expected)?;
        }
        Ok(())
    }
}
