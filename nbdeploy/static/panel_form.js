let made = 0;

const node = (tag, properties, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

export default {
  render({ model, el }) {
    const field = (facts, index) => {
      const id = `nbdeploy-field-${made += 1}`;
      const options = (facts.choices ?? []).map((value) => node('option', { value, textContent: value || 'null' }));
      const input = facts.kind === 'bool'
        ? node('select', {}, ...options)
        : node('input', { type: 'text', autocomplete: 'off', spellcheck: false });
      Object.assign(input, { id, value: model.get('values')[index] });
      const parts = [node('label', { htmlFor: id, textContent: facts.name, title: facts.name }), input];
      if (facts.kind !== 'bool') {
        input.inputMode = ['int', 'float'].includes(facts.kind) ? 'decimal' : 'text';
        if (facts.nullable) input.placeholder = 'null';
        if (options.length) {
          input.setAttribute('list', `${id}-list`);
          parts.push(node('datalist', { id: `${id}-list` }, ...options));
        }
      }
      const hint = node('small', { id: `${id}-hint`, textContent: facts.hint, title: facts.hint });
      input.setAttribute('aria-describedby', hint.id);
      const tell = () => {
        model.set('values', model.get('values').map((value, i) => (i === index ? input.value : value)));
        model.save_changes();
      };
      input.addEventListener('change', tell);
      input.addEventListener('keydown', (event) => {
        if (event.key !== 'Enter' || event.shiftKey || event.ctrlKey) return;
        event.stopPropagation();
        event.preventDefault();
        tell();
        model.send({ submit: true });
      });
      return node('div', { className: 'nbdeploy-field' }, ...parts, hint);
    };
    const draw = () => el.replaceChildren(...model.get('fields').map(field));
    model.on('change:fields', draw);
    draw();
    return () => model.off('change:fields', draw);
  },
};
