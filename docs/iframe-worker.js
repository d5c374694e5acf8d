// Browsers start no worker from a file, so a page that is opened from a folder could not search. There, and only there,
// a worker is a script in a hidden frame: messages to it and from it are events, as those of a worker.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.body.appendChild(document.createElement("iframe"))
      this.frame.hidden = true
      const inside = this.frame.contentWindow
      inside.postMessage = data => {
        const message = new MessageEvent("message", { data })
        this.dispatchEvent(message)
        this.onmessage?.(message)
      }
      this.ready = new Promise((resolve, reject) => {
        const script = inside.document.createElement("script")
        Object.assign(script, { src: url, onload: resolve, onerror: reject })
        inside.document.head.append(script)
      })
      this.ready.catch(error => this.onerror?.(error))
    }

    postMessage(data) {
      this.ready.then(() => {
        const inside = this.frame.contentWindow
        inside?.dispatchEvent(new inside.MessageEvent("message", { data: structuredClone(data) }))
      }, () => {})
    }

    terminate() {
      this.frame.remove()
    }
  }
}
