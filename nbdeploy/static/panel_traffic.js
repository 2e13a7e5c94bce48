const node = (tag, properties, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const percent = (value) => `${Number(value.toFixed(2))} %`;

export default {
  render({ model, el }) {
    let chosen = '';  // until the user chooses, the kernel does
    let share = null;  // where the slider was dragged to, until that holds or another change is made
    let seen = null;
    let asked = null;  // what is to be confirmed
    const facts = () => model.get('facts');
    const candidate = () => {
      const { others = [], chosen: own } = facts();
      return others.find((one) => one.version === chosen) ?? others.find((one) => one.version === own);
    };
    const tell = (what) => {
      model.send({ live: facts().live, ...what });
      asked = null;
      draw();
    };
    const button = (onclick, kind = '') => node('button', { type: 'button', className: `jupyter-button ${kind}`, onclick });
    const ask = (what, label, says) => {
      asked = { what, label, says };
      why.value = '';
      draw();
      why.focus();
    };

    const select = node('select', {
      title: 'The version beside the live one',
      onchange: () => { chosen = select.value; share = asked = null; draw(); },
    });
    const slider = node('input', {
      type: 'range', min: 0, step: 1, oninput: () => { share = Number(slider.value); draw(); },
    });
    const split = node('output', {});
    const apply = button(() => tell({ do: 'traffic', version: candidate().version, share }));
    const validate = button(() => tell({ do: 'validate', version: candidate().version }));
    const promote = button(() => ask({ do: 'promote', version: candidate().version }, `Promote ${candidate().version}`, candidate().says));
    const back = button(() => ask({ do: 'rollback', version: facts().back.version }, facts().back.label, facts().back.says));
    const reasons = node('div', { className: 'nbdeploy-reasons' });
    const says = node('span', {});
    const why = node('input', { type: 'text', maxLength: 200, placeholder: 'Why? For the history', ariaLabel: 'Why' });
    const yes = button(() => tell({ ...asked.what, why: why.value }), 'mod-primary');
    const no = button(() => { asked = null; draw(); });
    no.textContent = 'Cancel';
    const told = node('span', {});
    const orders = node('span', { className: 'nbdeploy-actions' });
    const guard = node('div', { className: 'nbdeploy-quiet' });
    const choose = node('div', { className: 'nbdeploy-split' }, node('label', {}, 'Candidate', select), slider, split, apply);
    const confirm = node('div', { className: 'nbdeploy-confirm', role: 'group' }, says, why, yes, no);
    const rollout = node('div', { className: 'nbdeploy-rollout' }, told, orders);
    const buttons = node('div', { className: 'nbdeploy-actions' }, validate, promote, back);
    // JupyterLab's own keys, such as the arrows, would move on to another cell.
    for (const input of [select, slider, why]) input.dataset.lmSuppressShortcuts = 'true';
    why.addEventListener('keydown', ({ key }) => { if (key === 'Escape') no.click(); });

    const draw = () => {
      const { live, busy, validating, others = [], back: way, rollout: steps, guard: watched } = facts();
      el.hidden = !live;
      if (!live) return;
      const one = candidate();
      const names = others.map(({ version }) => version);
      if (names.join() !== [...select.options].map(({ value }) => value).join()) {
        select.replaceChildren(...names.map((name) => node('option', { value: name, textContent: name })));
      }
      if (seen !== `${one?.version} ${one?.share} ${live}`) share = null;
      seen = `${one?.version} ${one?.share} ${live}`;
      const still = { promote: one?.says, rollback: way.says }[asked?.what.do];
      if (asked && (still !== asked.says || busy)) asked = null;

      choose.hidden = validate.hidden = !one;
      if (one) {
        const now = share ?? one.share;
        select.value = one.version;
        slider.max = one.most;
        slider.value = now;
        slider.ariaLabel = slider.title = `Share of ${one.version}`;
        slider.ariaValueText = percent(now);
        const parts = [`${live} ${percent(one.rest - now)}`, `${one.version} ${percent(now)}`, one.beside];
        split.textContent = parts.filter(Boolean).join(', ');
        apply.textContent = 'Apply split';
        apply.disabled = busy || now === one.share;
        const ends = [one.shadow && `; ${one.version} shadows no more`, steps && '; the rollout ends'].filter(Boolean);
        apply.title = now === one.share ? 'This is how it is.' : `From now on ${split.textContent}${ends.join('')}.`;
        apply.classList.toggle('mod-primary', now !== one.share);
        select.disabled = slider.disabled = busy;
        validate.textContent = `Validate ${one.version}`;
        validate.title = `Run the gate notebook against ${one.version}, aside from the traffic, and keep it as evidence.`;
        validate.disabled = busy || validating;
        validate.classList.toggle('nbdeploy-busy', !!validating);
      }
      promote.textContent = one?.label ?? 'Promote';
      promote.title = one ? one.refused || one.says : 'No other version is saved.';
      promote.disabled = busy || !one || !!one.refused;
      back.textContent = way.label;
      back.title = way.refused || way.says;
      back.disabled = busy || !!way.refused;
      buttons.hidden = !!asked;
      const hint = `Save another model under this name and it is a candidate, while ${live} goes on answering.`;
      reasons.replaceChildren(...[one ? one.refused : hint, one ? way.refused : ''].filter(Boolean).map((text) => node('div', { textContent: text })));
      reasons.hidden = !!asked || !reasons.childElementCount;
      confirm.hidden = !asked;
      if (asked) {
        says.textContent = asked.says;
        yes.textContent = asked.label;
      }
      rollout.hidden = !steps;
      told.textContent = steps?.says ?? '';
      orders.replaceChildren(...(steps?.orders ?? []).map((order) => {
        const made = button(() => tell({ do: 'rollout', order }));
        made.textContent = order[0].toUpperCase() + order.slice(1);
        made.title = { pause: 'It keeps its share until it is resumed.', resume: 'Its time goes on.', abort: `All requests go to ${live}.` }[order];
        made.disabled = busy;
        return made;
      }));
      guard.textContent = watched;
      guard.hidden = !watched;
    };
    el.replaceChildren(choose, buttons, confirm, reasons, rollout, guard);
    model.on('change:facts', draw);
    draw();
    return () => model.off('change:facts', draw);
  },
};
