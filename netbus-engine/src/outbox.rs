//! Queues that whoever fills them also empties, so that what goes out needs no task to wake up.
//!
//! A frame for a link, a reply for a client: putting it into an [`Outbox`] puts it on its way at once, on the thread
//! that made it, unless another thread is just at it, which then takes it along. Only when the other side does not take
//! more does a task ([`Outbox::serve`]) wait for it.
//!
//! A thread that is about to make many such things holds a [`Plug`] meanwhile: what it puts into outboxes leaves
//! together when the plug is pulled. The name and the idea are those of the block layer in Linux (`blk_start_plug`).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::task::{Context, Poll, Wake, Waker};

use tokio::sync::Notify;

/// Something that gathers while a [`Plug`] is held.
pub trait Flush: Send + Sync {
    /// Sets going what has gathered. Must not block.
    fn flush(&self);
}

thread_local! {
    /// What is to be flushed when this thread's plug is pulled; `None` without a plug.
    static GATHERED: RefCell<Option<Vec<Arc<dyn Flush>>>> = const { RefCell::new(None) };
}

/// While a thread holds one, what it puts into outboxes waits; it leaves when the plug is dropped.
pub struct Plug {
    /// A plug inside another one does nothing.
    outermost: bool,
    /// Bound to its thread, and so never held over an `await`.
    _thread: PhantomData<*const ()>,
}

impl Plug {
    /// Holds back what this thread puts into outboxes.
    #[must_use]
    pub fn hold() -> Self {
        let outermost = GATHERED.with_borrow_mut(|gathered| {
            let outermost = gathered.is_none();
            gathered.get_or_insert_default();
            outermost
        });
        Self { outermost, _thread: PhantomData }
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        if !self.outermost {
            return;
        }
        // Flushing one may fill another.
        loop {
            let gathered = GATHERED.with_borrow_mut(|gathered| match gathered {
                Some(list) if !list.is_empty() => std::mem::take(list),
                Some(_) | None => {
                    *gathered = None;
                    Vec::new()
                }
            });
            if gathered.is_empty() {
                return;
            }
            for flush in gathered {
                flush.flush();
            }
        }
    }
}

/// Flushes now, or when this thread's plug is pulled.
pub fn flush_soon(flush: &Arc<impl Flush + 'static>) {
    let plugged = GATHERED.with_borrow_mut(|gathered| {
        let Some(list) = gathered else { return false };
        if !list.iter().any(|known| std::ptr::addr_eq(Arc::as_ptr(known), Arc::as_ptr(flush))) {
            list.push(Arc::clone(flush) as Arc<dyn Flush>);
        }
        true
    });
    if !plugged {
        flush.flush();
    }
}

/// Where the items of an outbox go.
pub trait Drain<T>: Send + 'static {
    /// Takes items and puts them out until there are none and all is out. `Pending` when the other side takes no more
    /// at present, after which `cx` is woken as with any poll.
    ///
    /// # Errors
    /// Nothing more can be put out; the outbox is over.
    fn poll_drain(&mut self, cx: &mut Context<'_>, items: &Items<T>) -> Poll<io::Result<()>>;
}

/// What waits in an outbox, first in, first out.
pub struct Items<T>(Mutex<VecDeque<T>>);

impl<T> Items<T> {
    /// The next one.
    pub fn take(&self) -> Option<T> {
        self.lock().pop_front()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A queue with its way out.
pub struct Outbox<T, D> {
    items: Items<T>,
    /// `None` when it is over.
    drain: Mutex<Option<D>>,
    over: AtomicBool,
    alarm: Arc<Alarm>,
    waker: Waker,
}

/// Wakes the task that waits for the other side.
struct Alarm(Notify);

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }
}

impl<T: Send + 'static, D: Drain<T>> Outbox<T, D> {
    /// An empty outbox. [`Outbox::serve`] must run for it.
    pub fn new(drain: D) -> Arc<Self> {
        let alarm = Arc::new(Alarm(Notify::new()));
        let waker = Waker::from(Arc::clone(&alarm));
        let items = Items(Mutex::new(VecDeque::new()));
        Arc::new(Self { items, drain: Mutex::new(Some(drain)), over: AtomicBool::new(false), alarm, waker })
    }

    /// Puts an item in, and on its way. When the outbox is over it goes nowhere.
    pub fn push(self: &Arc<Self>, item: T) {
        if !self.is_over() {
            self.items.lock().push_back(item);
            flush_soon(self);
        }
    }

    /// Goes on whenever the other side takes more; returns when the outbox is over.
    pub async fn serve(&self) {
        while !self.is_over() {
            self.alarm.0.notified().await;
            self.flush();
        }
    }

    /// Ends it: what has not left does not leave.
    pub fn close(&self) {
        self.over.store(true, Ordering::Release);
        *self.drain.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.items.lock().clear();
        self.alarm.0.notify_one();
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

impl<T: Send + 'static, D: Drain<T>> Flush for Outbox<T, D> {
    fn flush(&self) {
        loop {
            let mut drain = match self.drain.try_lock() {
                Ok(drain) => drain,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                // Whoever is at it looks again before it leaves.
                Err(TryLockError::WouldBlock) => return,
            };
            let Some(open) = drain.as_mut() else { return };
            match open.poll_drain(&mut Context::from_waker(&self.waker), &self.items) {
                Poll::Ready(Ok(())) => {}
                Poll::Pending => return,
                Poll::Ready(Err(_)) => {
                    *drain = None;
                    drop(drain);
                    return self.close();
                }
            }
            drop(drain);
            if self.items.lock().is_empty() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{OnceLock, Weak, mpsc};
    use std::time::Duration;

    use super::*;

    /// How long a test waits for what should happen at once.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Passes items on, in batches, while it is open.
    struct Window {
        out: mpsc::Sender<Vec<u32>>,
        open: Open,
    }

    /// Whether it is open, and who waits until it is.
    type Open = Arc<Mutex<(bool, Option<Waker>)>>;

    impl Drain<u32> for Window {
        fn poll_drain(&mut self, cx: &mut Context<'_>, items: &Items<u32>) -> Poll<io::Result<()>> {
            let mut open = self.open.lock().expect("no test panics with it");
            if !open.0 {
                open.1 = Some(cx.waker().clone());
                return Poll::Pending;
            }
            let batch: Vec<u32> = std::iter::from_fn(|| items.take()).collect();
            if batch.contains(&0) {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            if !batch.is_empty() {
                self.out.send(batch).map_err(io::Error::other)?;
            }
            Poll::Ready(Ok(()))
        }
    }

    fn window() -> (Arc<Outbox<u32, Window>>, mpsc::Receiver<Vec<u32>>, Open) {
        let (out, batches) = mpsc::channel();
        let open = Arc::new(Mutex::new((true, None)));
        (Outbox::new(Window { out, open: Arc::clone(&open) }), batches, open)
    }

    #[test]
    fn an_item_leaves_at_once_and_under_a_plug_with_the_others() {
        let (outbox, batches, _) = window();
        outbox.push(1);
        assert_eq!(batches.try_recv(), Ok(vec![1]));
        {
            let _plug = Plug::hold();
            outbox.push(2);
            let inner = Plug::hold();
            outbox.push(3);
            drop(inner);
            assert!(batches.try_recv().is_err(), "the inner plug must not let anything out");
        }
        assert_eq!(batches.try_recv(), Ok(vec![2, 3]));
        assert!(batches.try_recv().is_err());
    }

    #[tokio::test]
    async fn what_was_not_taken_leaves_when_the_other_side_takes_more() {
        let (outbox, batches, open) = window();
        let serving = tokio::spawn({
            let outbox = Arc::clone(&outbox);
            async move { outbox.serve().await }
        });
        open.lock().expect("no test panics with it").0 = false;
        outbox.push(1);
        outbox.push(2);
        assert!(batches.try_recv().is_err());
        let waker = {
            let mut open = open.lock().expect("no test panics with it");
            open.0 = true;
            open.1.take()
        };
        waker.expect("the outbox waits").wake();
        let waiting = tokio::task::spawn_blocking(move || batches.recv_timeout(PATIENCE));
        assert_eq!(waiting.await.expect("it does not panic"), Ok(vec![1, 2]));
        // A broken way out ends it, and whoever serves it.
        outbox.push(0);
        let over = tokio::time::timeout(PATIENCE, serving).await;
        over.expect("nobody serves what is over").expect("it does not panic");
    }

    /// Passes on what there is, and just then somebody else puts a last item in.
    struct Interrupted {
        out: mpsc::Sender<u32>,
        outbox: Arc<OnceLock<Weak<Outbox<u32, Interrupted>>>>,
    }

    impl Drain<u32> for Interrupted {
        fn poll_drain(&mut self, _: &mut Context<'_>, items: &Items<u32>) -> Poll<io::Result<()>> {
            let mut last = 0;
            while let Some(item) = items.take() {
                last = item;
                self.out.send(item).map_err(io::Error::other)?;
            }
            let outbox = self.outbox.get().and_then(Weak::upgrade).expect("it is being drained");
            if last == 1 {
                // On a thread of its own, which finds this one at it and leaves.
                std::thread::scope(|scope| scope.spawn(|| outbox.push(2)).join()).expect("it does not panic");
            }
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn an_item_that_comes_while_others_leave_is_taken_along() {
        let (out, left) = mpsc::channel();
        let known = Arc::new(OnceLock::new());
        let outbox = Outbox::new(Interrupted { out, outbox: Arc::clone(&known) });
        known.set(Arc::downgrade(&outbox)).expect("it is set once");
        outbox.push(1);
        assert_eq!(left.try_iter().collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn items_of_many_threads_all_leave() {
        let (outbox, batches, _) = window();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let outbox = &outbox;
                scope.spawn(move || (1..=1000).for_each(|item| outbox.push(thread * 1000 + item)));
            }
        });
        let mut left: Vec<u32> = batches.try_iter().flatten().collect();
        left.sort_unstable();
        assert_eq!(left, (1..=4000).collect::<Vec<_>>());
    }
}
