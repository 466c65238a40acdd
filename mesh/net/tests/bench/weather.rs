//! A WAN in this process: a UDP relay before a node that delays and loses datagrams both ways. No privileges needed.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{
    net::UdpSocket,
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep_until},
};

/// Datagrams under way in one direction of one path.
const UNDER_WAY_MAX: usize = 4096;

#[derive(Clone, Copy)]
pub struct Weather {
    pub one_way: Duration,
    /// Share of datagrams lost, 0 to 1.
    pub loss: f64,
}

/// Stands before one node until dropped; others know the node by [`Relay::address`].
pub struct Relay {
    pub address: SocketAddr,
    socket: UdpSocket,
}

impl Relay {
    pub async fn open() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        Self { address: socket.local_addr().unwrap(), socket }
    }

    /// Relays between everybody and `node`. Aborting the task ends it.
    pub fn before(self, node: SocketAddr, weather: Weather, seed: u64) -> JoinHandle<()> {
        tokio::spawn(async move {
            let outside = Arc::new(self.socket);
            let mut paths: HashMap<SocketAddr, mpsc::Sender<(Instant, Vec<u8>)>> = HashMap::new();
            let mut chance = StdRng::seed_from_u64(seed);
            let mut tasks = JoinSet::new();
            let mut buffer = vec![0; 65_536];
            loop {
                // On Linux an ICMP answer to an earlier datagram may show here; it concerns one peer only.
                let Ok((n, from)) = outside.recv_from(&mut buffer).await else { continue };
                if chance.random_bool(weather.loss) {
                    continue;
                }
                let path = match paths.get(&from) {
                    Some(path) => path,
                    None => {
                        let inside = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                        inside.connect(node).await.unwrap();
                        let (to_node, inward) = mpsc::channel(UNDER_WAY_MAX);
                        tasks.spawn(deliver(inward, inside.clone(), None));
                        let (to_peer, outward) = mpsc::channel(UNDER_WAY_MAX);
                        tasks.spawn(deliver(outward, outside.clone(), Some(from)));
                        let back_chance = StdRng::seed_from_u64(seed ^ u64::from(from.port()));
                        tasks.spawn(return_path(inside, to_peer, weather, back_chance));
                        paths.entry(from).or_insert(to_node)
                    }
                };
                let _full_is_loss = path.try_send((Instant::now() + weather.one_way, buffer[..n].to_vec()));
            }
        })
    }
}

async fn return_path(
    inside: Arc<UdpSocket>,
    to_peer: mpsc::Sender<(Instant, Vec<u8>)>,
    weather: Weather,
    mut chance: StdRng,
) {
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok(n) = inside.recv(&mut buffer).await else { continue };
        if !chance.random_bool(weather.loss) {
            let _full_is_loss = to_peer.try_send((Instant::now() + weather.one_way, buffer[..n].to_vec()));
        }
    }
}

/// The delay is the same for all, so the queue is in order of delivery.
async fn deliver(mut queue: mpsc::Receiver<(Instant, Vec<u8>)>, socket: Arc<UdpSocket>, to: Option<SocketAddr>) {
    while let Some((at, datagram)) = queue.recv().await {
        sleep_until(at).await;
        let _unreachable_is_loss = match to {
            Some(to) => socket.send_to(&datagram, to).await,
            None => socket.send(&datagram).await,
        };
    }
}
