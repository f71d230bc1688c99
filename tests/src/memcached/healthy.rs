//! A healthy memcached client: it sets, gets, counts and deletes keys of its own and knows every
//! answer. What it stores is far below memcached's memory limit, so nothing is evicted.

use std::{collections::HashMap, fmt::Debug, time::Duration};

use super::client::Client;
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
    counter: u64,
    model: HashMap<String, Vec<u8>>,
}

impl Healthy {
    fn expect_value(&mut self, key: &str) -> Result<(), Surprise> {
        let value = self.client.get(key)?;
        expect(&format!("get {key}"), value.as_ref(), self.model.get(key))
    }

    fn counter_key(&self) -> String {
        format!("n{}", self.ident)
    }
}

impl HealthyClient for Healthy {
    fn connect(address: &Address, ident: usize, patience: Duration) -> Result<Self, Surprise> {
        let client = Client::connect(address, patience)?;
        let mut healthy = Self {
            client,
            ident,
            serial: 0,
            counter: 0,
            model: HashMap::new(),
        };
        let key = healthy.counter_key();
        healthy.client.set(&key, b"0")?;
        Ok(healthy)
    }

    fn step(&mut self, random: &mut Random) -> Result<(), Surprise> {
        let key = format!("u{}:{}", self.ident, random.below(KEYS));
        match random.below(10) {
            0..4 => {
                self.serial += 1;
                let padding = "x".repeat(random.below(LONGEST_VALUE) as usize);
                let value = format!("{}-{}-{padding}", self.ident, self.serial).into_bytes();
                self.client.set(&key, &value)?;
                self.model.insert(key, value);
            }
            4 => {
                let existed = self.model.remove(&key).is_some();
                expect(&format!("delete {key}"), self.client.delete(&key)?, existed)?;
            }
            5 => {
                self.counter += 1;
                let key = self.counter_key();
                expect(
                    &format!("incr {key}"),
                    self.client.incr(&key, 1)?,
                    Some(self.counter),
                )?;
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
        let key = self.counter_key();
        let counter = self.client.get(&key)?;
        expect(
            &format!("get {key}"),
            counter,
            Some(self.counter.to_string().into_bytes()),
        )
    }
}

fn expect<T: Debug + PartialEq>(request: &str, found: T, expected: T) -> Result<(), Surprise> {
    if found == expected {
        Ok(())
    } else {
        Err(format!("{request}: expected {expected:?}, got {found:?}").into())
    }
}
