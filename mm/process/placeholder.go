package process

// Alloc2 is VirtualAlloc2 as far as it differs from VirtualAlloc: MEM_RESERVE_PLACEHOLDER reserves a placeholder, and
// MEM_REPLACE_PLACEHOLDER puts an allocation in the place of one, of exactly its range. InvalidParameter: bits that make no
// sense. InvalidAddress: no such placeholder.
func (p *Process) Alloc2(addr, size uint64, typ uint32, prot Protection) (uint64, error) {
	switch {
	case typ&MemReservePlaceholder != 0:
		if typ != MemReserve|MemReservePlaceholder || prot != NoAccess || size%PageSize != 0 {
			return 0, InvalidParameter
		}
		base, err := p.Alloc(addr, size, MemReserve, prot)
		if err != nil {
			return 0, err
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if v := p.find(base >> pageShift); v != nil {
			v.placeholder = true
		}
		return base, nil
	case typ&MemReplacePlaceholder != 0:
		return p.replacePlaceholder(addr, size, typ&^MemReplacePlaceholder, prot)
	}
	return p.Alloc(addr, size, typ, prot)
}

func (p *Process) replacePlaceholder(addr, size uint64, typ uint32, prot Protection) (uint64, error) {
	first, last, ok := p.span(addr, size)
	if !ok || addr == 0 || addr%PageSize != 0 || size%PageSize != 0 || !prot.valid() ||
		typ&^(MemCommit) != MemReserve {
		return 0, InvalidParameter
	}
	c, err := p.change(nil, first, last)
	defer p.done(c)
	if err != nil {
		return 0, err
	}
	v := p.find(first)
	if v == nil || !v.placeholder || v.first != first || v.last != last {
		return 0, InvalidAddress
	}
	if typ&MemCommit != 0 {
		v.protection = prot
		if err := p.commitPages(v, first, last, prot); err != nil {
			v.protection = NoAccess
			return 0, err
		}
	}
	v.protection, v.placeholder, v.replaced = prot, false, true
	return addr, nil
}

// splitPlaceholder is VirtualFree with MEM_PRESERVE_PLACEHOLDER: a part of a placeholder becomes one of its own, or the
// allocation that replaced one, of exactly that range, a placeholder again.
func (p *Process) splitPlaceholder(r *revocation, addr, size uint64) error {
	first, last, ok := p.span(addr, size)
	if !ok || addr%PageSize != 0 || size%PageSize != 0 {
		return InvalidParameter
	}
	c, err := p.change(r, first, last)
	defer p.done(c)
	if err != nil {
		return err
	}
	v, err := p.own(addr)
	switch {
	case err != nil:
		return err
	case v.placeholder && v.contains(first, last) && (v.first != first || v.last != last):
		p.remove(v)
		for _, part := range [][2]uint64{{v.first, first - 1}, {first, last}, {last + 1, v.last}} {
			if part[0] <= part[1] {
				n := newVAD(part[0], part[1], NoAccess)
				n.placeholder = true
				p.insert(n)
			}
		}
		return nil
	case v.replaced && v.first == first && v.last == last:
		p.discardPages(v, first, last)
		v.set(first, last, func(attr) attr { return attr{} })
		v.protection, v.placeholder, v.replaced = NoAccess, true, false
		return nil
	}
	return InvalidAddress
}

// coalescePlaceholders is VirtualFree with MEM_COALESCE_PLACEHOLDERS: adjacent placeholders that make up exactly the range
// become one.
func (p *Process) coalescePlaceholders(r *revocation, addr, size uint64) error {
	first, last, ok := p.span(addr, size)
	if !ok || addr%PageSize != 0 || size%PageSize != 0 {
		return InvalidParameter
	}
	c, err := p.change(r, first, last)
	defer p.done(c)
	if err != nil {
		return err
	}
	var parts []*vad
	for page := first; page <= last; {
		v := p.find(page)
		if v == nil || !v.placeholder || v.first != page || v.last > last {
			return InvalidAddress
		}
		parts = append(parts, v)
		page = v.last + 1
	}
	if len(parts) < 2 {
		return InvalidAddress
	}
	for _, v := range parts {
		p.remove(v)
	}
	n := newVAD(first, last, NoAccess)
	n.placeholder = true
	p.insert(n)
	return nil
}
