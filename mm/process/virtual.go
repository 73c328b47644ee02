package process

// allocTypes are the bits that VirtualAlloc knows.
const allocTypes = MemCommit | MemReserve | MemReset | MemResetUndo | MemTopDown | MemWriteWatch | MemPhysical |
	MemLargePages

// checkType says whether an allocation type is one.
func checkType(t uint32, p Protection) bool {
	switch {
	case t&^allocTypes != 0, t&(MemCommit|MemReserve|MemReset|MemResetUndo) == 0:
		return false
	case t&(MemReset|MemResetUndo) != 0:
		return t == MemReset || t == MemResetUndo
	case t&MemPhysical != 0:
		return t&^MemTopDown == MemPhysical|MemReserve && p == ReadWrite
	case t&MemWriteWatch != 0 && t&MemReserve == 0:
		return false
	case t&MemLargePages != 0:
		return t&MemCommit != 0 && t&MemReserve != 0 && t&MemWriteWatch == 0
	}
	return true
}

// span is the pages of size bytes at addr: addr rounded down, its end up to a page. ok is false if there are none, or if
// they do not lie within the address space.
func (p *Process) span(addr, size uint64) (first, last uint64, ok bool) {
	end := addr + size - 1
	if size == 0 || end < addr || end > p.high {
		return 0, 0, false
	}
	return addr >> pageShift, end >> pageShift, true
}

// Alloc is VirtualAlloc: it reserves, commits or resets pages and returns the base of the range. Errors as in the calls'
// documentation: InvalidParameter for bits, sizes and addresses that make no sense, InvalidAddress for a range that is
// taken, or not within one allocation, CommitmentLimit if nothing can be promised, NotEnoughMemory if a quota is exceeded
// or the address space is full; for large pages PrivilegeNotHeld, and NoSystemResources if there are no frames for them.
func (p *Process) Alloc(addr, size uint64, typ uint32, prot Protection) (uint64, error) {
	if !checkType(typ, prot) {
		return 0, InvalidParameter
	}
	if size == 0 || addr != 0 && addr < p.low {
		return 0, InvalidParameter
	}
	first, last, ok := p.span(addr, size)
	if !ok || addr == 0 && last >= p.high>>pageShift {
		return 0, InvalidParameter
	}
	// What pages of a view can be is seen when it is known that they are (commit).
	if !prot.valid() && (typ != MemCommit || addr == 0 || !prot.validView()) {
		return 0, InvalidParameter
	}
	if typ&MemLargePages != 0 {
		if err := p.mayHaveLarge(addr, size); err != nil {
			return 0, err
		}
	}
	switch {
	case typ&(MemReset|MemResetUndo) != 0:
		p.fetch(addr, size)
		return first << pageShift, p.reset(first, last, typ == MemResetUndo)
	case typ&MemReserve != 0, addr == 0:
		return p.reserve(addr, first, last, typ, prot)
	}
	return first << pageShift, p.revise(addr, size, false, func(r *revocation) error { return p.commit(r, first, last, prot) })
}

// reserve makes an allocation, at addr unless that is 0.
func (p *Process) reserve(addr, first, last uint64, typ uint32, prot Protection) (uint64, error) {
	bitmap := 0
	if typ&MemWriteWatch != 0 {
		bitmap = watchBytes(last - first + 1)
		if err := p.machine.sys.ChargeRecord(bitmap); err != nil {
			return 0, NotEnoughMemory
		}
	}
	v, c, err := p.place(addr, first, last, typ, prot)
	if err == nil {
		p.bitmaps += bitmap
		p.recorded += bitmap
		if typ&MemCommit != 0 {
			if err = p.commitPages(v, v.first, v.last, prot); err == nil && v.large {
				err = p.lockLarge(v, func() error { return p.space.Lock(v.first, v.last, everything) })
			}
			if err != nil {
				p.discardPages(v, v.first, v.last)
				p.remove(v)
				p.bitmaps -= bitmap
			}
		}
	}
	p.done(c)
	switch {
	case err != nil && v == nil && bitmap > 0:
		p.machine.sys.ReleaseRecord(bitmap)
		fallthrough
	case err != nil:
		return 0, err
	}
	return v.base(), nil
}

// place finds or checks the place of an allocation and makes it, all pages reserved. Its pages are held exclusively.
// +checklocksacquire:p.mu
func (p *Process) place(addr, first, last uint64, typ uint32, prot Protection) (*vad, *changing, error) {
	// Nobody can touch free memory, so the pages need holding only from when they are no longer free.
	c, err := p.change(nil, noPages, noPages)
	if err != nil {
		return nil, c, err
	}
	n := last - first + 1
	if addr != 0 {
		first &^= slotPages - 1
		if n = last - first + 1; !p.free(first, last) {
			return nil, c, InvalidAddress
		}
	} else {
		var ok bool
		if first, ok = p.gap(n, alignment(typ), typ&MemTopDown != 0); !ok {
			return nil, c, NotEnoughMemory
		}
	}
	if most := p.image.Limits.Virtual; most > 0 && p.virtual+n > most>>pageShift {
		return nil, c, NotEnoughMemory
	}
	v := newVAD(first, first+n-1, prot)
	v.physical, v.large = typ&MemPhysical != 0, typ&MemLargePages != 0
	if typ&MemWriteWatch != 0 {
		v.watch = newWatch()
	}
	c.hold.first, c.hold.last = v.first, v.last
	p.insert(v)
	return v, c, nil
}

// commit is MEM_COMMIT within an allocation.
func (p *Process) commit(r *revocation, first, last uint64, prot Protection) error {
	c, err := p.change(r, first, last)
	defer p.done(c)
	if err != nil {
		return err
	}
	v := p.find(first)
	switch {
	case !prot.valid() && (v == nil || v.view == nil):
		return InvalidParameter
	case v == nil || !v.contains(first, last) || v.physical || v.placeholder || v.system:
		return InvalidAddress
	case v.view != nil:
		return p.commitView(v, first, last, prot)
	case !v.whole(first, last):
		return InvalidParameter
	}
	return p.commitPages(v, first, last, prot)
}

// commitPages commits what is not committed and gives all the protection; on failure nothing has changed. The pages are
// held.
// +checklocks:p.mu
func (p *Process) commitPages(v *vad, first, last uint64, prot Protection) error {
	todo := v.committed(first, last, false)
	var n uint64
	for _, r := range todo {
		n += r[1] - r[0] + 1
	}
	if most := p.image.Limits.Commit; most > 0 && p.space.Committed()+p.committing+n > most>>pageShift {
		return NotEnoughMemory
	}
	p.committing += n
	err := p.unlocked(func() error { return p.commitRanges(todo) })
	p.committing -= n
	if err != nil {
		return err
	}
	p.commitPeak = max(p.commitPeak, p.space.Committed())
	prot = prot.of(v.protection)
	v.set(first, last, func(attr) attr { return attr{committed: true, protection: prot} })
	p.shoot(first, last, prot)
	return nil
}

// commitRanges commits ranges of pages of which nothing is committed; all or none.
func (p *Process) commitRanges(ranges [][2]uint64) error {
	for i, r := range ranges {
		if err := p.space.Commit(r[0], r[1]); err != nil {
			for _, r := range ranges[:i+1] {
				p.space.Decommit(r[0], r[1])
			}
			return win32(err)
		}
	}
	return nil
}

// shoot takes pages that can no longer be touched out of the working set.
// +checklocks:p.mu
func (p *Process) shoot(first, last uint64, prot Protection) {
	if prot.Base() == NoAccess || prot&Guard != 0 {
		p.space.Trim(first, last)
	}
}

// Free is VirtualFree. InvalidParameter: bits that make no sense, a size where there must be none, or a range that leaves
// its allocation. InvalidAddress: no allocation there, or not at its base.
func (p *Process) Free(addr, size uint64, typ uint32) error {
	extent := size
	if size == 0 {
		if r, err := p.Allocation(addr); err == nil {
			extent = r.AllocationBase + r.RegionSize - addr
		}
	}
	return p.revise(addr, extent, true, func(r *revocation) error { return p.giveBack(r, addr, size, typ) })
}

func (p *Process) giveBack(r *revocation, addr, size uint64, typ uint32) error {
	switch {
	case addr > p.high:
		return InvalidParameter
	case typ == MemRelease && size != 0:
		return InvalidParameter
	case typ == MemRelease:
		return p.releaseAll(r, addr)
	case typ == MemDecommit:
		return p.decommit(r, addr, size)
	case typ == MemRelease|MemPreservePlaceholder:
		return p.splitPlaceholder(r, addr, size)
	case typ == MemRelease|MemCoalescePlaceholders:
		return p.coalescePlaceholders(r, addr, size)
	}
	return InvalidParameter
}

// own finds the private allocation that a call which frees means.
// +checklocks:p.mu
func (p *Process) own(addr uint64) (*vad, error) {
	v := p.find(addr >> pageShift)
	switch {
	case v == nil:
		return nil, InvalidAddress
	case v.kind != TypePrivate || v.system:
		return nil, InvalidParameter
	}
	return v, nil
}

func (p *Process) releaseAll(r *revocation, addr uint64) error {
	c, err := p.changeAllocation(r, addr>>pageShift)
	defer p.done(c)
	if err != nil {
		return err
	}
	v, err := p.own(addr)
	if err != nil {
		return err
	}
	if v.first != addr>>pageShift {
		return InvalidAddress
	}
	p.discardPages(v, v.first, v.last)
	if v.large {
		p.forgetLarge(v)
	}
	p.remove(v)
	if v.watch != nil {
		p.bitmaps -= watchBytes(v.pages())
	}
	return nil
}

// discardPages gives back what is behind pages. They are held.
// +checklocks:p.mu
func (p *Process) discardPages(v *vad, first, last uint64) {
	if v.physical {
		p.awe.unmap(first, last)
		return
	}
	for _, r := range v.committed(first, last, true) {
		p.space.Decommit(r[0], r[1])
	}
}

func (p *Process) decommit(r *revocation, addr, size uint64) error {
	end := addr + size
	if end < addr {
		return InvalidParameter
	}
	c, err := p.changeAllocation(r, addr>>pageShift)
	defer p.done(c)
	if err != nil {
		return err
	}
	v, err := p.own(addr)
	if err != nil {
		return err
	}
	first, last := addr>>pageShift, (end-1)>>pageShift
	switch {
	case size == 0 && first != v.first:
		return InvalidAddress
	case size == 0:
		last = v.last
	}
	if last > v.last || v.physical || v.large || v.placeholder {
		return InvalidParameter
	}
	p.discardPages(v, first, last)
	v.set(first, last, func(attr) attr { return attr{} })
	v.watch.decommit(first, last)
	return nil
}

// Protect is VirtualProtect: it gives the pages of the range, all committed and of one allocation, a new protection, and
// returns the first one's old protection.
func (p *Process) Protect(addr, size uint64, prot Protection) (old Protection, err error) {
	err = p.revise(addr, size, false, func(r *revocation) (err error) {
		old, err = p.protect(r, addr, size, prot)
		return err
	})
	return old, err
}

func (p *Process) protect(r *revocation, addr, size uint64, prot Protection) (old Protection, err error) {
	if !prot.validView() {
		return 0, InvalidParameter
	}
	first, last, ok := p.span(addr, size)
	if !ok {
		return NoAccess, InvalidParameter
	}
	c, err := p.change(r, first, last)
	defer p.done(c)
	if err != nil {
		return NoAccess, err
	}
	v := p.find(first)
	if v != nil && v.view != nil && v.contains(first, last) {
		old = v.at(first).protection
		if err := p.protectView(v, first, last, prot); err != nil {
			return NoAccess, err
		}
		return old, nil
	}
	if v != nil && v.view != nil {
		return NoAccess, InvalidAddress
	}
	if !prot.valid() {
		return 0, InvalidParameter
	}
	if v == nil || !v.contains(first, last) || v.system ||
		!v.all(first, last, func(a attr) bool { return a.committed && !a.offered }) {
		return NoAccess, InvalidAddress
	}
	if !v.whole(first, last) {
		return NoAccess, InvalidParameter
	}
	old = v.at(first).protection
	prot = prot.of(v.protection)
	v.set(first, last, func(a attr) attr { a.protection = prot; return a })
	v.watch.latch(first, last)
	p.shoot(first, last, prot)
	return old, nil
}

// Region is what VirtualQuery says of the pages from an address on that are alike (MEMORY_BASIC_INFORMATION).
type Region struct {
	BaseAddress       uint64
	AllocationBase    uint64
	AllocationProtect Protection
	RegionSize        uint64 // bytes
	State             State
	Protect           Protection
	Type              Type
}

// Query is VirtualQuery: of the page at addr and those after it that are alike. InvalidParameter beyond the address space.
func (p *Process) Query(addr uint64) (Region, error) {
	if addr > p.high || addr < p.low && p.regions != nil {
		return Region{}, InvalidParameter
	}
	p.survey()
	p.mu.Lock()
	defer p.mu.Unlock()
	page := addr >> pageShift
	if v := p.find(page); v != nil {
		return v.region(page), nil
	}
	next := p.high>>pageShift + 1
	if i := p.after(page); i < len(p.vads) {
		next = p.vads[i].first
	}
	return Region{
		BaseAddress: page << pageShift, RegionSize: (next - page) << pageShift, State: StateFree, Protect: NoAccess,
	}, nil
}

// region describes the pages of v from page on that are like it.
func (v *vad) region(page uint64) Region {
	i := v.runAt(page)
	a, end := v.runs[i].attr, v.end(i)
	for i++; i < len(v.runs) && v.runs[i].committed == a.committed && v.runs[i].protection == a.protection; i++ {
		end = v.end(i)
	}
	committed := a.committed
	if v.view != nil {
		committed, end = v.view.state(page, end)
	}
	if v.view != nil && !committed { // reserved pages are alike, whatever they would be
		_, end = v.view.state(page, v.last)
	}
	r := Region{
		BaseAddress: page << pageShift, AllocationBase: v.base(), AllocationProtect: v.protection,
		RegionSize: (end - page + 1) << pageShift, State: StateReserve, Type: v.kind,
	}
	if committed {
		r.State, r.Protect = StateCommit, a.protection
	}
	return r
}

// Allocation is the whole allocation at addr (QueryVirtualMemoryInformation, MemoryRegionInfo). InvalidAddress if the
// address is free.
func (p *Process) Allocation(addr uint64) (Region, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := p.find(addr >> pageShift)
	if addr > p.high {
		return Region{}, InvalidParameter
	}
	if v == nil {
		return Region{}, InvalidAddress
	}
	return Region{
		BaseAddress: v.base(), AllocationBase: v.base(), AllocationProtect: v.protection,
		RegionSize: v.pages() << pageShift, State: StateReserve, Type: v.kind,
	}, nil
}

// Map is one region of an address space and what it is used for, for maps.
type Map struct {
	Region
	Use    string // "stack", "heap" …; may be empty
	Offset uint64 // of a view: in its section
}

// Maps lists the regions that are not free, in order.
func (p *Process) Maps() (maps []Map) {
	p.survey()
	sections := make(map[uint64]*Section) // by allocation base
	p.mu.Lock()
	for _, v := range p.vads {
		if v.view != nil {
			p.machine.reference(v.view.section)
			sections[v.base()] = v.view.section
		}
		for page := v.first; page <= v.last; {
			r := v.region(page)
			m := Map{Region: r, Use: v.use}
			if v.view != nil {
				m.Offset = v.view.offset + r.BaseAddress - v.base()
			}
			maps = append(maps, m)
			page += r.RegionSize >> pageShift
		}
	}
	p.mu.Unlock()
	uses := make(map[*Section]string)
	for _, s := range sections {
		uses[s] = s.use()
		p.machine.dereference(s, false)
	}
	for i := range maps {
		if s := sections[maps[i].AllocationBase]; s != nil {
			maps[i].Use = uses[s]
		}
	}
	return maps
}
