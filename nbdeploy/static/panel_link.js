// The browser may sit on another machine than the kernel; 127.0.0.1 is then not the service's machine.
const LOCAL = ['localhost', '127.0.0.1', '[::1]'];

async function reachable(url) {
  if (LOCAL.includes(location.hostname)) return url;
  try {
    const { baseUrl } = JSON.parse(document.getElementById('jupyter-config-data').textContent);
    const proxied = new URL(`${baseUrl}proxy/${new URL(url).port}/`, location.href).href;
    const answer = await fetch(`${proxied}livez`);
    return answer.ok && !answer.redirected ? proxied : null;
  } catch {
    return null;
  }
}

async function copy(text, node) {
  try {
    await navigator.clipboard.writeText(text);
    return 'Copied';
  } catch {  // not a secure page, or not allowed: leave it selected
    getSelection().selectAllChildren(node);
    return 'Press Ctrl+C';
  }
}

export default {
  render({ model, el }) {
    const draw = async () => {
      const url = model.get('url');
      const target = /^http:\/\/[\w.:-]+$/.test(url) ? await reachable(url) : null;
      if (url !== model.get('url')) return;
      el.replaceChildren();
      if (!url) return;
      const text = document.createElement(target ? 'a' : 'code');
      if (target) Object.assign(text, { href: target, target: '_blank', rel: 'noopener noreferrer' });
      text.textContent = target ?? url;
      const button = document.createElement('button');
      Object.assign(button, { type: 'button', textContent: 'Copy', title: `Copy ${text.textContent}` });
      button.addEventListener('click', async () => {
        button.textContent = await copy(text.textContent, text);
        setTimeout(() => { button.textContent = 'Copy'; }, 2000);
      });
      el.append(text, button);
    };
    // ipywidgets marks a panel as disconnected when its kernel restarts, but not when it dies or is shut down.
    const kernel = model.widget_manager.kernel;
    const gone = () => el.closest('.nbdeploy-panel')?.classList.add('jupyter-widgets-disconnected');
    const onStatus = (_, now) => ['autorestarting', 'dead', 'terminating'].includes(now) && gone();
    kernel?.statusChanged.connect(onStatus);
    kernel?.disposed.connect(gone);
    model.on('change:url', draw);
    model.send({ views: 1 });
    draw();
    return () => {
      kernel?.statusChanged.disconnect(onStatus);
      kernel?.disposed.disconnect(gone);
      model.off('change:url', draw);
      model.send({ views: -1 });
    };
  },
};
