package process

import (
	"cmp"
	"errors"
	"maps"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"

	"memfs/mm"
)

// A window is how real programs map a process's address space: the host kernel caches pages of it as it does a file's. Its
// READ of a page is a fault of the process, its WRITE brings what programs have stored in their mappings.
//
// # Coherence
//
// What the process's own calls do to pages that the host may hold must be seen in the mappings, and the reverse. held says
// which pages the host may hold: those that it has asked for and that have not been invalidated since.
//
// A call that loads first has the host send what it has (fetch): it invalidates what the host holds of the range. A call that
// stores, or changes what pages are, is an edit: it is registered, done, and then what the host holds of the pages is
// invalidated. A WRITE that comes meanwhile is a page as programs had it before, changed by them: the edit goes on top of
// it, or, if the memory is gone, the WRITE is dropped. A page that the host has asked for after the edit was done has the
// edit in it; from then on a WRITE of that page counts. Stores to one page are done in the order in which they were
// registered, WRITEs among them.
//
// # Waiting
//
// An invalidation waits for READs and WRITEs of its pages. So none is done with pages held, or with a lock held, or from
// Fault, WriteBack and the Direct… methods, which handlers of READ and WRITE call; those wait for stores before them,
// which wait for store I/O only: nothing that is done to a view is an edit, and an access that crosses the border of one is
// several. Window.mu is a leaf: it is taken under the PFN lock too, when pages are trimmed.
type Window struct {
	p    *Process
	host Host

	pages atomic.Int64 // bits set in held

	mu sync.Mutex
	// +checklocks:mu
	held map[uint64]uint64 // 64 pages a word, as the views of the system cache
	// +checklocks:mu
	order []uint64 // keys of held, the oldest first
	// +checklocks:mu
	leaving []*leaving
	// +checklocks:mu
	edits []*edit // in the order of their registration
	// +checklocks:mu
	trimmed map[uint64]uint64 // held pages that have left the working set, to be invalidated
	// +checklocks:mu
	later []*edit // done by a handler, to be invalidated by the shooter
	// +checklocks:mu
	closed bool
}

// Host is the host kernel's cache of an address space.
type Host interface {
	// Invalidate drops the host's copies of [off, off+n) (n < 0: all), and has it send what is dirty of them before. It
	// waits for the host.
	Invalidate(off, n int64) error
}

// leaving is an invalidation under way: the host may still have the pages, and what is dirty of them.
type leaving struct {
	first, last uint64
	done        chan struct{}
}

// edit is a store or a change of pages under way, or a WRITE.
type edit struct {
	first, last uint64 // pages
	addr        uint64
	data        []byte          // what is stored at addr; nil: nothing
	gone        bool            // the memory that was there is no more
	write       bool            // a WRITE: what host and process have is the same
	ok          bool            // it has been done, and not failed; before done is closed
	done        chan struct{}   // the process's memory has it, or it has failed
	seen        map[uint64]bool // pages that the host has asked for since; Window.mu
}

func (e *edit) overlaps(first, last uint64) bool { return e.first <= last && first <= e.last }

const windowShift = 6

// Window opens the process's address space to the host; host is kept from the first call. It returns the same window ever
// after.
func (p *Process) Window(host Host) *Window {
	if w := p.window.Load(); w != nil {
		return w
	}
	w := &Window{p: p, host: host, held: make(map[uint64]uint64), trimmed: make(map[uint64]uint64)}
	if !p.window.CompareAndSwap(nil, w) {
		return p.window.Load()
	}
	p.space.OnTrim(w.left)
	p.machine.shooter.add(w)
	p.mu.Lock()
	for first := uint64(0); first <= everything; { // what began without a window has ended then
		v, end := p.stretch(first, everything)
		if v == nil {
			var h *hold
			h, v = p.acquireStretch(first, end, true)
			end = h.last
			p.release(h)
		}
		if v != nil {
			end = v.last
		}
		first = end + 1
	}
	ended := p.ended
	p.mu.Unlock()
	if ended {
		w.close()
	}
	return w
}

// Mapped says whether the host may hold pages of any process.
func (m *Machine) Mapped() bool {
	m.shooter.mu.Lock()
	defer m.shooter.mu.Unlock()
	return slices.ContainsFunc(m.shooter.windows, func(w *Window) bool { return w.pages.Load() > 0 })
}

// --- what the host asks for and sends ------------------------------------------------------------------------------------

// Fault answers a READ into the host's cache: what a load of the pages does in the process it does, guard pages and all. A
// READ of more than one page is a guess of the host's at what will be wanted: it is answered only if that changes nothing,
// and after an error the host asks for the one page that it needs.
// writable says that programs may store into their mapping of the page without our knowing: only a page that allows it is
// handed out then. The error is an *Exception, or NoAccessError for a guess.
func (w *Window) Fault(addr uint64, buf []byte, writable func() bool) error {
	first, last := addr>>pageShift, (addr+uint64(len(buf))-1)>>pageShift
	if w.p.ShowsSection(addr, uint64(len(buf))) { // a store to the section would not be seen here: programs map its file
		return w.noView(addr, first, last)
	}
	if !w.hold(first, last) {
		return AccessDenied
	}
	before := w.before(first, last)
	if len(before) > 0 && first != last {
		w.release(first, last)
		return NoAccessError
	}
	for _, e := range before {
		<-e.done
	}
	if err := w.load(addr, buf, first, last, writable); err != nil {
		w.release(first, last)       // it has asked, and gets nothing
		if errors.Is(err, ErrView) { // mapped meanwhile
			return w.noView(addr, first, last)
		}
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range before {
		if e.write {
			continue
		}
		for page := max(first, e.first); page <= min(last, e.last); page++ {
			if e.seen == nil {
				e.seen = make(map[uint64]bool)
			}
			e.seen[page] = true
		}
	}
	return nil
}

// noView is the answer to a READ of pages of a view.
func (w *Window) noView(addr, first, last uint64) error {
	if first != last {
		return NoAccessError
	}
	return &Exception{StatusAccessViolation, Read, addr}
}

func (w *Window) load(addr uint64, buf []byte, first, last uint64, writable func() bool) error {
	p := w.p
	a := &access{
		kind: Read, addr: addr, size: uint64(len(buf)), unshared: true,
		do: func(r part, at, i, n uint64) error { return p.load(r, at, buf[i:i+n]) },
	}
	if first != last {
		if writable() && !p.quiet(first, last, Write) || !p.quiet(first, last, Read) {
			return NoAccessError
		}
		return p.remote(a, p.readable)
	}
	if !p.storable(first) && writable() {
		return &Exception{StatusAccessViolation, Write, addr}
	}
	return p.access(a)
}

// ShowsSection says whether one of size bytes at addr is a view's: to read or write it may have to wait for real programs.
func (p *Process) ShowsSection(addr, size uint64) bool {
	first, last := span(addr, size)
	p.mu.Lock()
	defer p.mu.Unlock()
	any, _ := p.viewsAmong(first, last)
	return any
}

// storable says whether a store into a page would be allowed, as far as its protection says; so is one into a page that
// cannot be read either.
func (p *Process) storable(page uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := p.find(page)
	if v == nil || v.physical {
		return true
	}
	a := v.at(page)
	return !a.committed || !a.protection.Readable() || a.protection&Guard != 0 || a.protection.Writable()
}

// quiet says whether an access to pages would change nothing: all are in the working set, and can be accessed.
func (p *Process) quiet(first, last uint64, k Kind) bool {
	p.mu.Lock()
	dep := p.dep.on
	ok := p.every(first, last, func(a attr) bool {
		return a.protection&Guard == 0 && a.protection.allows(k, dep) && a.protection.Readable()
	})
	for page := first; ok && page <= last; page++ {
		v := p.find(page)
		ok = !v.physical && !v.system
	}
	p.mu.Unlock()
	for page := first; ok && page <= last; page++ {
		ok = p.space.Page(page).State == mm.StateActive
	}
	return ok
}

// WriteBack takes a WRITE out of the host's cache: what programs stored in their mappings. Pages that are no more are passed
// over, and so are those that could not be written when the host asked for them. The error is of the memory manager.
func (w *Window) WriteBack(addr uint64, data []byte) error {
	first, last := addr>>pageShift, (addr+uint64(len(data))-1)>>pageShift
	e, before := w.register(&edit{first: first, last: last, write: true})
	defer w.finish(e, true)
	var failed error
	for i := uint64(0); i < uint64(len(data)); {
		n := min(uint64(len(data))-i, PageSize-(addr+i)%PageSize)
		if err := w.writePage(addr+i, data[i:i+n], before); err != nil && failed == nil {
			failed = err
		}
		i += n
	}
	return failed
}

// writePage is WriteBack of bytes within one page.
func (w *Window) writePage(addr uint64, data []byte, before []*edit) error {
	page := addr >> pageShift
	over := w.pending(page, before)
	revoked := false
	for _, e := range over {
		if e.gone {
			return nil
		}
		revoked = revoked || e.data == nil
	}
	merged := false
	for _, e := range over {
		lo, hi := max(e.addr, addr), min(e.addr+uint64(len(e.data)), addr+uint64(len(data)))
		if lo >= hi {
			continue
		}
		if !merged {
			data, merged = slices.Clone(data), true
		}
		copy(data[lo-addr:hi-addr], e.data[lo-e.addr:])
	}
	err := w.p.storeBack(addr, data, revoked)
	if errors.Is(err, NoAccessError) {
		w.left(page>>windowShift<<windowShift, 1<<(page%(1<<windowShift))) // the mapping shows what is not there
		return nil
	}
	return err
}

// pending is the edits of a page that were registered before a WRITE and that the host has not seen.
func (w *Window) pending(page uint64, before []*edit) (over []*edit) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range before {
		if !e.write && e.ok && e.overlaps(page, page) && !e.seen[page] {
			over = append(over, e)
		}
	}
	return over
}

// storeBack stores bytes of one page that programs stored before. A page that was written when the process allowed it is
// written even if that has changed since (revoked).
func (p *Process) storeBack(addr uint64, data []byte, revoked bool) error {
	page := addr >> pageShift
	p.mu.Lock()
	if v, _ := p.stretch(page, page); v != nil { // its pages were never handed out, and whoever has them held may wait for us
		p.mu.Unlock()
		return NoAccessError
	}
	h := p.acquire(page, page, false)
	ok := p.every(page, page, func(a attr) bool { return revoked || a.protection&Guard == 0 && a.protection.Writable() })
	if v := p.find(page); ok && (v.system || v.view != nil) {
		ok = false
	}
	p.mu.Unlock()
	err := error(NoAccessError)
	if ok {
		err = p.copyHeld(addr, uint64(len(data)), func(r part, at, i, n uint64) error { return p.store(r, at, data[i:i+n]) })
	}
	p.finish(h, Write)
	return err
}

// ReadDirect is read(2): as many bytes as can be loaded from addr on, without touching what follows. The host has sent what
// it holds before it asked. The error, an *Exception, is of the first byte; ErrView without views if it is a view's, and Busy
// with if too many calls wait for real programs.
func (w *Window) ReadDirect(addr uint64, buf []byte, views bool) (int, error) {
	return w.direct(Read, addr, uint64(len(buf)), func(at, i, n uint64) error {
		return w.p.access(&access{
			kind: Read, addr: at, size: n, unshared: !views,
			do: func(r part, at, j, n uint64) error { return w.p.load(r, at, buf[i+j:i+j+n]) },
		})
	})
}

// WriteDirect is write(2), likewise. What the host holds of the pages is invalidated soon after.
func (w *Window) WriteDirect(addr uint64, data []byte, views bool) (int, error) {
	return w.direct(Write, addr, uint64(len(data)), func(at, i, n uint64) error {
		return w.p.access(&access{
			kind: Write, addr: at, size: n, unshared: !views,
			do:   func(r part, at, j, n uint64) error { return w.p.store(r, at, data[i+j:i+j+n]) },
			edit: func(at, j, n uint64) func(error) { return w.editDirect(at, data[i+j:i+j+n]) },
		})
	})
}

// editDirect begins a store by write(2).
func (w *Window) editDirect(addr uint64, data []byte) (end func(error)) {
	first, last := span(addr, uint64(len(data)))
	e, _ := w.register(&edit{first: first, last: last, addr: addr, data: data})
	return func(err error) {
		if err != nil || !w.holds(first, last) {
			w.finish(e, err == nil)
			return
		}
		e.data = slices.Clone(data) // the request's buffer is used again
		e.ok = true
		close(e.done)
		w.mu.Lock()
		w.later = append(w.later, e)
		w.mu.Unlock()
		w.p.machine.shooter.kick()
	}
}

func (w *Window) direct(k Kind, addr, size uint64, f func(at, i, n uint64) error) (int, error) {
	for done := uint64(0); done < size; {
		at := addr + done
		n := w.p.accessible(k, at, size-done)
		if n == 0 && done > 0 {
			return int(done), nil
		}
		if n == 0 {
			n = min(size, PageSize-at%PageSize) // raise what there is to raise
		}
		if err := f(at, done, n); err != nil {
			if done > 0 {
				return int(done), nil
			}
			return 0, err
		}
		done += n
	}
	return int(size), nil
}

// accessible is how many of the bytes from addr on an access would be allowed to touch.
func (p *Process) accessible(k Kind, addr, size uint64) (n uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	dep := p.dep.on
	for n < size {
		at := addr + n
		page := at >> pageShift
		if !p.every(page, page, func(a attr) bool { return a.protection&Guard == 0 && a.protection.allows(k, dep) }) {
			break
		}
		n += min(size-n, PageSize-at%PageSize)
	}
	return n
}

// --- edits -----------------------------------------------------------------------------------------------------------------

// register puts an edit in its place and waits for those before it. It returns them.
func (w *Window) register(e *edit) (*edit, []*edit) {
	e.done = make(chan struct{})
	w.mu.Lock()
	var before []*edit
	for _, o := range w.edits {
		if o.overlaps(e.first, e.last) {
			before = append(before, o)
		}
	}
	w.edits = append(w.edits, e)
	w.mu.Unlock()
	for _, o := range before {
		<-o.done
	}
	return e, before
}

// before is the edits of pages at this moment.
func (w *Window) before(first, last uint64) (before []*edit) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range w.edits {
		if o.overlaps(first, last) {
			before = append(before, o)
		}
	}
	return before
}

// finish ends an edit that needs no invalidation any more.
func (w *Window) finish(e *edit, ok bool) {
	select {
	case <-e.done:
	default:
		e.ok = ok
		close(e.done)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if i := slices.Index(w.edits, e); i >= 0 {
		w.edits = slices.Delete(w.edits, i, i+1)
	}
}

// fetch has the host send what programs have stored in their mappings of size bytes at addr.
func (p *Process) fetch(addr, size uint64) {
	if w := p.window.Load(); w != nil && size > 0 {
		w.invalidate(span(addr, size))
	}
}

// editing begins a store of data at addr. The function that it returns ends it: it is called with no pages held.
func (p *Process) editing(addr uint64, data []byte) (end func(error)) {
	w := p.window.Load()
	if w == nil {
		return nothing // one that is opened meanwhile waits for the pages to be held no more
	}
	first, last := span(addr, uint64(len(data)))
	return w.edit(&edit{first: first, last: last, addr: addr, data: data})
}

func nothing(error) {}

func (w *Window) edit(e *edit) (end func(error)) {
	w.register(e)
	return func(err error) {
		e.ok = err == nil
		close(e.done)
		w.invalidate(e.first, e.last)
		w.finish(e, e.ok)
	}
}

// span is the pages of size bytes, at least one; up to the end of everything if that is beyond it.
func span(addr, size uint64) (first, last uint64) {
	end := addr + max(size, 1) - 1
	if end < addr {
		end = ^uint64(0)
	}
	return addr >> pageShift, min(end>>pageShift, everything)
}

// --- what the host holds ---------------------------------------------------------------------------------------------------

// wordMask is the bits of those of pages first..last that are in word key.
func wordMask(key, first, last uint64) uint64 {
	mask := ^uint64(0)
	if key == first>>windowShift {
		mask &= ^uint64(0) << (first % 64)
	}
	if key == last>>windowShift {
		mask &= ^uint64(0) >> (63 - last%64)
	}
	return mask
}

// hold notes that the host asks for pages; false if the window is closed.
func (w *Window) hold(first, last uint64) bool {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return false
	}
	n := 0
	for key := first >> windowShift; key <= last>>windowShift; key++ {
		mask := wordMask(key, first, last)
		was, ok := w.held[key]
		if !ok {
			w.order = append(w.order, key)
		}
		n += bits.OnesCount64(mask &^ was)
		w.held[key] = was | mask
		if w.trimmed[key] &^= mask; w.trimmed[key] == 0 {
			delete(w.trimmed, key)
		}
	}
	w.mu.Unlock()
	w.count(n)
	return true
}

// release notes that the host has not got pages.
func (w *Window) release(first, last uint64) {
	w.mu.Lock()
	n := w.drop(first, last)
	w.mu.Unlock()
	w.count(-n)
}

// drop takes pages out of held, and says how many were in it.
// +checklocks:w.mu
func (w *Window) drop(first, last uint64) (n int) {
	for _, key := range w.keys(first, last) {
		mask := wordMask(key, first, last)
		was := w.held[key]
		n += bits.OnesCount64(was & mask)
		if w.held[key] = was &^ mask; w.held[key] == 0 {
			delete(w.held, key)
			i := slices.Index(w.order, key)
			w.order = slices.Delete(w.order, i, i+1)
		}
	}
	return n
}

// keys is the words of held that have pages among first..last, in no order.
// +checklocks:w.mu
func (w *Window) keys(first, last uint64) (keys []uint64) {
	lo, hi := first>>windowShift, last>>windowShift
	if hi-lo < uint64(len(w.held)) {
		for key := lo; key <= hi; key++ {
			if _, ok := w.held[key]; ok {
				keys = append(keys, key)
			}
		}
		return keys
	}
	for key := range w.held {
		if lo <= key && key <= hi {
			keys = append(keys, key)
		}
	}
	return keys
}

func (w *Window) count(n int) {
	if n != 0 {
		w.pages.Add(int64(n))
		w.p.machine.sys.AddHostPages(n)
	}
	if n > 0 && w.p.machine.sys.HostPagesOver() > 0 {
		w.p.machine.shooter.kick()
	}
}

// holds says whether the host may have pages of a range, also if it is just being told to let go of them.
func (w *Window) holds(first, last uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, _, ok := w.heldAmong(first, last)
	return ok || slices.ContainsFunc(w.leaving, func(l *leaving) bool { return l.first <= last && first <= l.last })
}

// heldAmong is the first and last held page of a range.
// +checklocks:w.mu
func (w *Window) heldAmong(first, last uint64) (lo, hi uint64, ok bool) {
	lo = everything
	for _, key := range w.keys(first, last) {
		if m := w.held[key] & wordMask(key, first, last); m != 0 {
			lo = min(lo, key<<windowShift+uint64(bits.TrailingZeros64(m)))
			hi = max(hi, key<<windowShift+63-uint64(bits.LeadingZeros64(m)))
			ok = true
		}
	}
	return lo, hi, ok
}

// invalidate drops what the host holds of pages; what is dirty of them has been taken when it returns. It waits for the host:
// no handler of a READ or WRITE of the window may call it, and nothing may be held.
func (w *Window) invalidate(first, last uint64) {
	w.mu.Lock()
	var others []*leaving
	for _, l := range w.leaving {
		if l.first <= last && first <= l.last {
			others = append(others, l)
		}
	}
	lo, hi, ok := w.heldAmong(first, last)
	n := 0
	mine := &leaving{first: lo, last: hi, done: make(chan struct{})}
	if ok {
		n = w.drop(lo, hi)
		w.leaving = append(w.leaving, mine)
	}
	w.mu.Unlock()
	if ok {
		_ = w.host.Invalidate(int64(lo<<pageShift), int64((hi-lo+1)<<pageShift))
		w.mu.Lock()
		i := slices.Index(w.leaving, mine)
		w.leaving = slices.Delete(w.leaving, i, i+1)
		w.mu.Unlock()
		close(mine.done)
		w.count(-n)
	}
	for _, l := range others {
		<-l.done
	}
}

// shoot invalidates what has left the working set, and what handlers have stored.
func (w *Window) shoot() {
	w.mu.Lock()
	trimmed, later := w.trimmed, w.later
	w.trimmed, w.later = make(map[uint64]uint64), nil
	w.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(trimmed)) {
		for mask := trimmed[key]; mask != 0; {
			lo := bits.TrailingZeros64(mask)
			n := bits.TrailingZeros64(^(mask >> lo))
			first := key<<windowShift + uint64(lo)
			w.invalidate(first, first+uint64(n)-1)
			mask &^= (1<<n - 1) << lo
		}
	}
	for _, e := range later {
		w.invalidate(e.first, e.last)
		w.finish(e, true)
	}
}

// shootOldest invalidates the pages that the host has held for the longest time, about n of them.
func (w *Window) shootOldest(n int64) {
	for ; n > 0; n -= 64 {
		w.mu.Lock()
		var key uint64
		any := len(w.order) > 0
		if any {
			key = w.order[0]
		}
		w.mu.Unlock()
		if !any {
			return
		}
		w.invalidate(key<<windowShift, key<<windowShift+63)
	}
}

// left notes that pages left the working set: the host's copies are to go as well. base is the first page of the word. It is
// called under the PFN lock.
func (w *Window) left(base, mask uint64) {
	w.mu.Lock()
	key := base >> windowShift
	if mask &= w.held[key]; mask != 0 {
		w.trimmed[key] |= mask
	}
	w.mu.Unlock()
	if mask != 0 {
		w.p.machine.shooter.kick()
	}
}

// close ends the window, after its process: nothing more is given to the host, and what comes from it is of memory that is
// gone.
func (w *Window) close() {
	w.mu.Lock()
	w.closed = true
	n := 0
	for _, mask := range w.held {
		n += bits.OnesCount64(mask)
	}
	clear(w.held)
	clear(w.trimmed)
	w.order = nil
	w.mu.Unlock()
	w.count(-n)
	w.p.machine.shooter.remove(w)
	_ = w.host.Invalidate(0, -1)
}

// --- the shooter -----------------------------------------------------------------------------------------------------------

// shooter invalidates pages in the host when nobody who could wait for it is there to do it: those that the memory manager
// has taken out of a working set, and those with which the host would hold more than its share. It runs while there are
// windows.
type shooter struct {
	sys  *mm.System
	wake chan struct{}

	mu sync.Mutex
	// +checklocks:mu
	windows []*Window
	// +checklocks:mu
	runs bool
}

func newShooter(sys *mm.System) *shooter { return &shooter{sys: sys, wake: make(chan struct{}, 1)} }

func (s *shooter) add(w *Window) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.windows = append(s.windows, w)
	if !s.runs {
		s.runs = true
		go s.loop()
	}
}

func (s *shooter) remove(w *Window) {
	s.mu.Lock()
	s.windows = slices.DeleteFunc(s.windows, func(o *Window) bool { return o == w })
	s.mu.Unlock()
	s.kick()
}

// kick never blocks.
func (s *shooter) kick() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// all lists the windows. Without any, the shooter ends.
func (s *shooter) all() []*Window {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.runs = len(s.windows) > 0
	return slices.Clone(s.windows)
}

func (s *shooter) loop() {
	for range s.wake {
		windows := s.all()
		if len(windows) == 0 {
			return
		}
		for _, w := range windows {
			w.shoot()
		}
		if over := s.sys.HostPagesOver(); over > 0 {
			slices.MaxFunc(windows, func(a, b *Window) int { return cmp.Compare(a.pages.Load(), b.pages.Load()) }).shootOldest(over)
			s.kick()
		}
	}
}
