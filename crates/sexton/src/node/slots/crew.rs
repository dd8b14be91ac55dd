//! The one thread that works on the network. It is made when there is work for the first time.

use std::sync::{OnceLock, mpsc};
use std::thread;

use tokio::sync::oneshot;

use crate::net::{Net, NetError, Scheme};

type Work = Box<dyn FnOnce(&mut Net) + Send>;

/// The way to the thread; it ends with this.
#[derive(Debug)]
pub struct Crew {
    scheme: Scheme,
    work: OnceLock<mpsc::Sender<Work>>,
}

impl Crew {
    /// A thread to come, for the slots of `scheme`.
    pub fn new(scheme: Scheme) -> Crew {
        Crew { scheme, work: OnceLock::new() }
    }

    /// Has `work` done after all that was sent before; the answer comes when it is done.
    pub fn send<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Net) -> T + Send + 'static,
    ) -> impl Future<Output = Result<T, NetError>> + Send + 'static {
        let (told, news) = oneshot::channel();
        let work: Work = Box::new(move |net| {
            let _heard = told.send(work(net));
        });
        // A thread that could not be made, or is gone, drops the work, and with it the sender of the answer.
        let _sent = self.work.get_or_init(|| begin(self.scheme.clone())).send(work);
        async move { news.await.map_err(|_| NetError::Failed("the thread for the network is gone".to_owned())) }
    }
}

fn begin(scheme: Scheme) -> mpsc::Sender<Work> {
    let (sender, work) = mpsc::channel::<Work>();
    let run = move || {
        let mut net = Net::open(scheme);
        for job in work {
            job(&mut net);
        }
    };
    if let Err(error) = thread::Builder::new().name("slots".to_owned()).spawn(run) {
        tracing::error!(%error, "no thread for the network");
    }
    sender
}
