//! A client of a web server: it fetches files whose content it knows.

use std::{io, time::Duration};

use super::{Clients, Healthy, failure_of};
use crate::{
    campaign::{target::nginx, trial::Failure},
    load::Random,
    net::{self, Address, Stream},
    oracle::{Log, Recorder},
};

/// Clients that fetch so many different files.
pub struct WebClients {
    /// How many.
    pub files: u64,
}

impl Clients for WebClients {
    fn healthy(
        &self,
        address: &Address,
        ident: usize,
        patience: Duration,
        _: &Recorder,
    ) -> Box<dyn Healthy> {
        Box::new(WebClient::new(address, ident, patience, self.files))
    }

    fn value(&self, _: &Address, _: &str, _: Duration) -> io::Result<Option<Vec<u8>>> {
        Ok(None)
    }
}

/// The client.
#[derive(Debug)]
pub struct WebClient {
    address: Address,
    ident: usize,
    patience: Duration,
    files: u64,
    stream: Option<Stream>,
}

impl WebClient {
    /// A client that fetches `files` different files.
    pub fn new(address: &Address, ident: usize, patience: Duration, files: u64) -> WebClient {
        WebClient {
            address: address.clone(),
            ident,
            patience,
            files,
            stream: None,
        }
    }
}

impl Healthy for WebClient {
    fn step(&mut self, random: &mut Random) -> Result<(), Failure> {
        let file = random.below(self.files);
        let request = format!("client {}, file {file}", self.ident);
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => net::connect_to(&self.address, self.patience)
                .map_err(|error| failure_of("connect", &error))?,
        };
        nginx::fetch(&mut stream, file).map_err(|error| failure_of(&request, &error))?;
        // Not for ever the same one.
        if random.below(200) != 0 {
            self.stream = Some(stream);
        }
        Ok(())
    }

    fn check_all(&mut self) -> Vec<Failure> {
        let mut random = Random::new(0);
        self.step(&mut random).err().into_iter().collect()
    }

    fn keys(&self) -> (Vec<String>, Vec<String>) {
        (Vec::new(), Vec::new())
    }

    fn into_log(self: Box<Self>) -> Option<Log> {
        None
    }
}
