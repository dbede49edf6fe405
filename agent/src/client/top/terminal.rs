//! A screen that is drawn over, and keys.

use std::{
    fs::File,
    io::{self, Write},
    sync::{
        Arc, Once,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use crossterm::{
    cursor::{Hide, Show},
    event::{Event, KeyCode, KeyEventKind, KeyModifiers, poll, read},
    execute,
    terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode},
};
use ratatui::{
    backend::{Backend as _, CrosstermBackend},
    buffer::Buffer,
    layout::Rect,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Notify, mpsc},
};
use tokio_stream::{Stream, wrappers::ReceiverStream};

use super::Poke;

/// Keys that wait. More are pressed only by whoever leans on them.
const KEYS_MAX: usize = 64;

/// How long the thread that waits for keys goes on after the last one.
const LOOK: Duration = Duration::from_millis(250);

/// What is taken where the terminal does not tell.
const USUAL_SIZE: (u16, u16) = (80, 24);

static ACTIVE: AtomicBool = AtomicBool::new(false);

/// Holding it, the terminal is ours; dropping it gives it back as it was.
pub(super) struct Terminal(());

impl Terminal {
    pub(super) fn enter() -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let usual = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                // What it says would go with the screen.
                restore();
                usual(panic);
            }));
        });
        enable_raw_mode()?;
        ACTIVE.store(true, Ordering::SeqCst);
        let terminal = Self(());
        execute!(tty()?, EnterAlternateScreen, Hide)?;
        Ok(terminal)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back as it was, if it is ours. For whoever ends the process at once, too.
pub(in crate::client) fn restore() {
    if !ACTIVE.swap(false, Ordering::SeqCst) {
        return;
    }
    // Nothing can be done about a terminal that is gone.
    if let Ok(mut tty) = tty() {
        _ = execute!(tty, Show, LeaveAlternateScreen);
    }
    _ = disable_raw_mode();
}

/// The terminal itself. Standard output may be locked by a thread that does not get on.
fn tty() -> io::Result<File> {
    File::options().write(true).open("/dev/tty")
}

/// All of it.
fn area() -> Rect {
    let (width, height) = crossterm::terminal::size().unwrap_or(USUAL_SIZE);
    // A terminal without a size has that of 0 × 0.
    let (width, height) = match (width, height) {
        (0, _) | (_, 0) => USUAL_SIZE,
        size => size,
    };
    Rect::new(0, 0, width, height)
}

/// What is on the screen.
#[derive(Default)]
pub(super) struct Canvas {
    drawn: Buffer,
}

impl Canvas {
    /// Draws what is different now.
    pub(super) fn draw(
        &mut self,
        render: impl FnOnce(Rect, &mut Buffer),
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let area = area();
        let mut next = Buffer::empty(area);
        render(area, &mut next);
        // In one piece, so that it does not flicker.
        let mut frame: Vec<u8> = Vec::new();
        let mut backend = CrosstermBackend::new(&mut frame);
        if self.drawn.area != area {
            backend.clear()?;
            self.drawn = Buffer::empty(area);
        }
        backend.draw(self.drawn.diff(&next).into_iter())?;
        self.drawn = next;
        out.write_all(&frame)?;
        out.flush()
    }

    /// The terminal may have lost what was drawn.
    pub(super) fn forget(&mut self) {
        self.drawn = Buffer::default();
    }
}

/// Whoever looks has had enough.
#[derive(Clone, Default)]
pub(super) struct Enough {
    pressed: Arc<Notify>,
    /// Somebody takes what [`keys`] gives.
    pub(super) heard: Arc<AtomicBool>,
}

impl Enough {
    /// How long it may take to end in good order.
    const GRACE: Duration = Duration::from_secs(2);

    /// Returns when it was said and nobody listens to it, or not in time, or when it was said twice.
    pub(super) async fn for_good(&self) {
        self.pressed.notified().await;
        if !self.heard.load(Ordering::SeqCst) {
            return;
        }
        tokio::select! {
            () = self.pressed.notified() => {}
            () = tokio::time::sleep(Self::GRACE) => {}
        }
    }
}

/// What is pressed, or done to the terminal, from now on. A thread waits for it, and ends when nobody takes it any more.
pub(super) fn keys(enough: Enough) -> anyhow::Result<impl Stream<Item = Poke> + Unpin> {
    let (sender, receiver) = mpsc::channel(KEYS_MAX);
    let signals = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        // The terminal is gone.
        SignalKind::hangup(),
    ];
    for kind in signals {
        let mut told = signal(kind)
            .with_context(|| format!("cannot listen to signal {}", kind.as_raw_value()))?;
        let (sender, enough) = (sender.clone(), enough.clone());
        tokio::spawn(async move {
            while told.recv().await.is_some() {
                enough.pressed.notify_one();
                // If there is no room, what is there is read first, or never.
                _ = sender.try_send(Poke::Quit);
            }
        });
    }
    let wait = move || {
        while !sender.is_closed() {
            let pressed = match poll(LOOK) {
                Ok(false) => continue,
                Ok(true) => read(),
                Err(error) => Err(error),
            };
            // A terminal that cannot be read has no keys.
            let Ok(pressed) = pressed else { return };
            for poke in meaning(&pressed) {
                // Before anything is heard no letter means anything else.
                let early =
                    !enough.heard.load(Ordering::SeqCst) && poke == Poke::Key(KeyCode::Char('q'));
                if poke == Poke::Quit || early {
                    enough.pressed.notify_one();
                }
                if sender.blocking_send(poke).is_err() {
                    return;
                }
            }
        }
    };
    std::thread::Builder::new()
        .name("keys".to_owned())
        .spawn(wait)?;
    Ok(ReceiverStream::new(receiver))
}

/// What a key means, as far as it means the same everywhere.
pub(super) fn meaning(event: &Event) -> Vec<Poke> {
    let key = match event {
        Event::Resize(..) => return vec![Poke::Resized],
        Event::Key(key) if key.kind != KeyEventKind::Release => key,
        _ => return Vec::new(),
    };
    match (key.code, key.modifiers) {
        // No signal comes of it while the terminal is ours.
        (KeyCode::Char('c' | 'd'), KeyModifiers::CONTROL) => vec![Poke::Quit],
        (KeyCode::Char('l'), KeyModifiers::CONTROL) => vec![Poke::Resized],
        (_, KeyModifiers::CONTROL) => Vec::new(),
        // Escape and a key that came at once, as on a slow line.
        (code, KeyModifiers::ALT) => vec![Poke::Key(KeyCode::Esc), Poke::Key(code)],
        (code, _) => vec![Poke::Key(code)],
    }
}
