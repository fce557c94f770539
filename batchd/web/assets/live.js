// What the server sends, as long as somebody looks: a page in the background listens to nothing.
const Live = (() => {
  const AGAIN_MS = 5000;

  // `address()` is where to listen: asked again each time. `handlers` take what each kind of event brings.
  function listen(address, handlers, { connected, failed }) {
    let source = null, again = 0;

    function open() {
      clearTimeout(again);
      if (source || document.hidden) return;
      source = new EventSource(address());
      source.addEventListener("open", () => connected(true));
      source.addEventListener("error", () => {
        connected(false);
        if (source && source.readyState === EventSource.CLOSED) { close(); refused(); }
      });
      for (const [name, take] of Object.entries(handlers)) {
        source.addEventListener(name, event => {
          const data = JSON.parse(event.data);
          if (data.at) Keep.clock(data.at);
          take(data, event.lastEventId);
        });
      }
    }
    function close() {
      clearTimeout(again);
      if (source) source.close();
      source = null;
    }
    // Signed out: the page shows the way in. An unknown name: it says so. Too many listen: it tries again.
    async function refused() {
      try {
        await get(address().replace("/live/", "/api/"));
        again = setTimeout(open, AGAIN_MS);
      } catch (error) {
        if (error.unknown) failed(error);
        else again = setTimeout(open, AGAIN_MS);
      }
    }
    document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
    window.addEventListener("pagehide", close);
    window.addEventListener("pageshow", event => { if (event.persisted) open(); });
    open();
    return { renew: () => { close(); open(); }, close };
  }
  async function get(address) {
    const answer = await fetch(address, { cache: "no-store" });
    const data = await answer.json();
    if (answer.status === 401) location.reload();
    if (!answer.ok) throw Object.assign(new Error(data.error), { unknown: answer.status === 404 });
    return data;
  }
  return { listen, get };
})();
