/* Material's search runs in a worker, which browsers refuse to pages that are opened from a folder. There this stands in
   for one: a hidden frame of the same origin that runs the worker's script. On a server nothing of it is used. */
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.srcdoc = "<body></body>";
      this.scope = new Promise((ready, failed) => {
        frame.onload = () => {
          const scope = frame.contentWindow;
          scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
          const script = scope.document.createElement("script");
          script.src = new URL(url, location.href).href;
          script.onload = () => ready(scope);
          script.onerror = failed;
          scope.document.body.append(script);
        };
      });
      document.body.append(frame);
    }
    postMessage(data) {
      this.scope.then((scope) => scope.dispatchEvent(new MessageEvent("message", { data })));
    }
  };
}
