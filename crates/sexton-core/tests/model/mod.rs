pub mod played;

/// The library's own types, and a `/proc` that knows nobody: a pidfd is all that is needed.
pub mod proc {
    pub use sexton_core::proc::{ReadProcError, Stat};
    use sexton_plan::id::Pid;

    pub fn stat(pid: Pid) -> Result<Stat, ReadProcError> {
        Err(ReadProcError::Gone(pid))
    }
}

pub mod handle {
    pub use sexton_core::handle::Handle;
}

/// What the standard library has and the checker has not, made of what it has.
pub mod sync {
    pub use loom::sync::{Mutex, MutexGuard, atomic, mpsc};

    use std::sync::LockResult;
    use std::time::Duration;

    #[derive(Debug)]
    pub struct Condvar(loom::sync::Condvar);

    impl Default for Condvar {
        fn default() -> Condvar {
            Condvar::new()
        }
    }

    impl Condvar {
        pub fn new() -> Condvar {
            Condvar(loom::sync::Condvar::new())
        }

        pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
            self.0.wait(guard)
        }

        /// Time does not pass while others can go on.
        pub fn wait_timeout<'a, T>(
            &self,
            guard: MutexGuard<'a, T>,
            _limit: Duration,
        ) -> LockResult<(MutexGuard<'a, T>, ())> {
            self.0.wait(guard).map(|guard| (guard, ())).map_err(|_| unreachable!("nobody panics"))
        }

        pub fn wait_timeout_while<'a, T>(
            &self,
            mut guard: MutexGuard<'a, T>,
            _limit: Duration,
            mut is_so: impl FnMut(&mut T) -> bool,
        ) -> LockResult<(MutexGuard<'a, T>, ())> {
            while is_so(&mut guard) {
                guard = self.0.wait(guard).expect("nobody panics");
            }
            Ok((guard, ()))
        }

        pub fn notify_all(&self) {
            self.0.notify_all();
        }
    }

    pub mod thread {
        pub use loom::thread::current;
        pub use std::thread::panicking;

        use std::io;
        use std::sync::Arc;

        use loom::sync::atomic::{AtomicBool, Ordering};

        use crate::sys::World;

        pub struct Builder(loom::thread::Builder);

        pub struct JoinHandle<T> {
            thread: loom::thread::JoinHandle<T>,
            is_finished: Arc<AtomicBool>,
        }

        impl<T> std::fmt::Debug for JoinHandle<T> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("JoinHandle")
            }
        }

        impl Builder {
            pub fn new() -> Builder {
                Builder(loom::thread::Builder::new())
            }

            pub fn name(self, name: String) -> Builder {
                Builder(self.0.name(name))
            }

            pub fn stack_size(self, _size: usize) -> Builder {
                self
            }

            pub fn spawn<T: Send + 'static>(
                self,
                run: impl FnOnce() -> T + Send + 'static,
            ) -> io::Result<JoinHandle<T>> {
                let is_finished = Arc::new(AtomicBool::new(false));
                let finish = Arc::clone(&is_finished);
                World::count_thread(1);
                let thread = self.0.spawn(move || {
                    let told = run();
                    World::count_thread(-1);
                    finish.store(true, Ordering::Release);
                    told
                })?;
                Ok(JoinHandle { thread, is_finished })
            }
        }

        impl<T> JoinHandle<T> {
            pub fn is_finished(&self) -> bool {
                self.is_finished.load(Ordering::Acquire)
            }

            pub fn thread(&self) -> &loom::thread::Thread {
                self.thread.thread()
            }

            pub fn join(self) -> std::thread::Result<T> {
                self.thread.join()
            }
        }
    }
}
