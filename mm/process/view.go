package process

import (
	"errors"
	"sort"

	"memfs/mm"
)

// view is what an allocation has that is a view of a section. Its pages are never reserved by themselves: what is committed
// is the section's to say (see reserves), and the runs keep each page's protection and whether the process has a copy of its
// own.
type view struct {
	section *Section
	offset  uint64 // bytes
	pieces  []piece
	image   *basedImage // nil = of a data section
}

// piece is the pages of a view that one subsection shows.
type piece struct {
	first, last uint64
	shown       *mm.View
	segment     *mm.Segment
	page        uint64      // of the segment, that first shows
	file        bool        // of the section's file, which real programs may use
	own         *imagePages // that the segment is of; nil = none
}

// at finds the piece that a page lies in.
func (w *view) at(page uint64) *piece {
	i := sort.Search(len(w.pieces), func(i int) bool { return w.pieces[i].last >= page })
	return &w.pieces[i]
}

// reserves says that pages of the view may be reserved only, as their section's are.
func (w *view) reserves() bool {
	return w.section.pageFile && w.section.attributes&SecReserve != 0
}

// copies says that a store to the memory makes a copy of the page.
func (p Protection) copies() bool { return p&(WriteCopy|ExecuteWriteCopy) != 0 }

// own is the protection of a page that has been copied: there is nothing to copy any more.
func (p Protection) own() Protection {
	switch p.Base() {
	case WriteCopy:
		return ReadWrite | p&^baseMask
	case ExecuteWriteCopy:
		return ExecuteReadWrite | p&^baseMask
	}
	return p
}

// withoutExecute is the protection of pages of an image that is not to be executed (SEC_IMAGE_NO_EXECUTE).
func (p Protection) withoutExecute() Protection {
	switch p {
	case Execute, ExecuteRead:
		return ReadOnly
	case ExecuteReadWrite:
		return ReadWrite
	case ExecuteWriteCopy:
		return WriteCopy
	}
	return p
}

// access is what pages of a protection let a process do with what others see.
func (p Protection) access() (a uint32) {
	if p.Readable() {
		a |= fileRead
	}
	if p.shares() {
		a |= fileWrite
	}
	if p.Executable() {
		a |= fileExecute
	}
	return a
}

// promised says whether space is committed for a page of a view in the process's own memory.
func (a attr) promised() bool { return a.copied || a.protection.copies() }

// needs is the access to a section that a view of a protection takes.
func needs(p Protection) uint32 {
	switch p {
	case ReadWrite:
		return SectionMapWrite
	case Execute:
		return SectionMapExecute
	case ExecuteRead, ExecuteWriteCopy:
		return SectionMapRead | SectionMapExecute
	case ExecuteReadWrite:
		return SectionMapWrite | SectionMapExecute
	}
	return SectionMapRead
}

// permits says whether a section's protection lets a view have another one (MiIsPteProtectionCompatible's table).
func (s *Section) permits(p Protection) bool { return p.access()&^s.protection.access() == 0 }

// Bits of MapViewOfFile's access.
const (
	FileMapCopy      = 0x1
	FileMapWrite     = 0x2
	FileMapRead      = 0x4
	FileMapExecute   = 0x20
	FileMapAllAccess = SectionAllAccess

	FileMapLargePages     = 0x20000000
	fileMapTargetsInvalid = 0x40000000 // no control flow guard: there is none
)

// ViewProtection is the protection that MapViewOfFile makes of its access.
func ViewProtection(access uint32) Protection {
	execute := access&FileMapExecute != 0
	pick := func(plain, executable Protection) Protection {
		if execute {
			return executable
		}
		return plain
	}
	switch rest := access &^ (FileMapExecute | FileMapLargePages | fileMapTargetsInvalid); {
	case rest == FileMapCopy:
		return pick(WriteCopy, ExecuteWriteCopy)
	case rest&FileMapWrite != 0:
		return pick(ReadWrite, ExecuteReadWrite)
	case rest&FileMapRead != 0:
		return pick(ReadOnly, ExecuteRead)
	}
	return NoAccess
}

// ViewRequest is what is to be mapped, and where.
type ViewRequest struct {
	Offset     uint64 // in the section; a multiple of Granularity, of PageSize in a placeholder
	Base       uint64 // 0 = anywhere
	Size       uint64 // 0 = to the end
	Type       uint32 // MEM_RESERVE, MEM_TOP_DOWN, MEM_REPLACE_PLACEHOLDER, MEM_LARGE_PAGES
	Protection Protection
	Target     *Process // whose memory; nil = the caller's
}

// MapView is MapViewOfFile and its kin: it maps a section of the caller's handle and returns the base. InvalidHandle;
// MappedAlignment for a base or an offset; AccessDenied if the handle does not allow it, or the view would leave the section;
// InvalidParameter if the section's protection does not; InvalidAddress if the place is taken; CommitmentLimit if nothing
// can be promised for copies; NotEnoughMemory if there is no place.
func (p *Process) MapView(h Handle, r ViewRequest) (uint64, error) {
	s, access, done, err := use[*Section](p, h)
	if err != nil {
		return 0, err
	}
	defer done()
	target := r.Target
	if target == nil {
		target = p
	}
	if err := s.admits(&r, access, target); err != nil {
		return 0, err
	}
	return target.mapView(s, &r)
}

// admits checks a request, in the order in which its errors are told, and gives it its size.
func (s *Section) admits(r *ViewRequest, access uint32, p *Process) error {
	align := alignment(r.Type) << pageShift
	replace, large := r.Type&MemReplacePlaceholder != 0, r.Type&MemLargePages != 0
	if replace {
		align = PageSize
	}
	switch {
	case r.Type&^(MemReserve|MemTopDown|MemReplacePlaceholder|MemLargePages) != 0, !r.Protection.validView():
		return InvalidParameter
	case large && (replace || s.attributes&SecLargePages == 0 || r.Size%LargePage != 0 || r.Protection.copies()):
		return InvalidParameter
	case replace && (r.Base == 0 || r.Size == 0 || r.Size%PageSize != 0 || r.Type&(MemReserve|MemTopDown) != 0):
		return InvalidParameter
	case r.Base%align != 0 || r.Offset%align != 0:
		return MappedAlignment
	case r.Base != 0 && r.Base < p.low, r.Base > p.high:
		return InvalidParameter
	}
	if need := needs(r.Protection.Base()); access&need != need {
		return AccessDenied
	}
	if s.image == nil && !s.permits(r.Protection) {
		return InvalidParameter
	}
	end := s.size
	if s.pageFile || s.image != nil {
		end = (end + PageSize - 1) &^ (PageSize - 1)
	}
	switch {
	case r.Size > p.high || r.Offset+r.Size < r.Offset || r.Base+r.Size > p.high+1:
		return InvalidParameter
	case r.Offset > end || r.Size > end-r.Offset:
		return AccessDenied // STATUS_INVALID_VIEW_SIZE
	}
	if r.Size == 0 {
		r.Size = end - r.Offset
	}
	if r.Size == 0 {
		return AccessDenied
	}
	return nil
}

// mapView makes the view of an admitted request.
func (p *Process) mapView(s *Section, r *ViewRequest) (uint64, error) {
	if s.file.Segment().Hosted() {
		p.viewing.Lock()
		defer p.viewing.Unlock()
	}
	c, err := p.change(nil, noPages, noPages)
	v, at, err := p.placeView(s, r, c, err)
	if err == nil {
		p.machine.reference(s)
		if err = p.fillView(v, at); err == nil && v.large {
			err = p.lockLarge(v, func() error { return v.view.pieces[0].shown.Lock(v.first, v.last, everything) })
		}
		if err != nil {
			p.unfill(v)
			p.unplace(v)
		}
	}
	p.done(c)
	if err != nil && v != nil {
		p.machine.dereference(s, false)
	}
	if err != nil {
		return 0, err
	}
	p.machine.countView(s, 1)
	return v.base(), nil
}

// placeView finds or checks the place of a view and makes its allocation, with nothing behind it yet. Its pages are held.
// +checklocks:p.mu
func (p *Process) placeView(s *Section, r *ViewRequest, c *changing, err error) (v *vad, offset uint64, _ error) {
	if err != nil {
		return nil, 0, err
	}
	n := (r.Size + PageSize - 1) >> pageShift
	first := r.Base >> pageShift
	var old *vad
	switch {
	case r.Type&MemReplacePlaceholder != 0:
		old = p.find(first)
		if old == nil || !old.placeholder || old.first != first || old.pages() != n {
			return nil, 0, InvalidAddress
		}
	case first != 0:
		if !p.free(first, first+n-1) {
			return nil, 0, InvalidAddress
		}
	default:
		var ok bool
		if first, ok = p.imagePlace(s, r, n); !ok {
			if first, ok = p.gap(n, alignment(r.Type), r.Type&MemTopDown != 0); !ok {
				return nil, 0, NotEnoughMemory
			}
		}
		if s.image != nil && s.image.area.layout.Bits == 32 && first+n > 1<<(32-pageShift) {
			return nil, 0, NotEnoughMemory
		}
	}
	if most := p.image.Limits.Virtual; most > 0 && old == nil && p.virtual+n > most>>pageShift {
		return nil, 0, NotEnoughMemory
	}
	cache := Protection(0)
	if s.attributes&SecNoCache != 0 && s.image == nil {
		cache = NoCache
	} else if s.attributes&SecWriteCombine != 0 {
		cache = WriteCombine
	}
	v = newVAD(first, first+n-1, (r.Protection | cache).of(r.Protection|cache))
	v.kind, v.view, v.replaced = TypeMapped, &view{section: s, offset: r.Offset}, old != nil
	v.large = r.Type&MemLargePages != 0
	v.runs[0].attr = attr{committed: true, protection: v.protection}
	if s.image != nil {
		v.kind, v.protection = TypeImage, ExecuteWriteCopy
	}
	if old != nil {
		p.remove(old)
	}
	c.hold.first, c.hold.last = v.first, v.last
	p.insert(v)
	return v, r.Offset, nil
}

// imagePlace is where an image would like to lie, if that is free.
// +checklocks:p.mu
func (p *Process) imagePlace(s *Section, r *ViewRequest, n uint64) (first uint64, ok bool) {
	if s.image == nil {
		return 0, false
	}
	base := s.image.base + r.Offset
	first = base >> pageShift
	return first, base >= p.low && first+n-1 <= p.high>>pageShift && p.free(first, first+n-1)
}

// fillView puts the section's pages behind a view that begins at an offset in it, and promises what its copies may take. On
// an error unfill undoes what was done. The pages are held.
// +checklocks:p.mu
func (p *Process) fillView(v *vad, offset uint64) error {
	at := v.first
	skip := offset >> pageShift
	subsections := v.view.section.subsections
	if i := v.view.section.image; i != nil {
		err := p.unlocked(func() (err error) {
			v.view.image, err = i.area.view(v.base() - offset)
			return err
		})
		if err != nil {
			return err
		}
		subsections = v.view.image.subsections
	}
	for _, sub := range subsections {
		if skip >= sub.Pages {
			skip -= sub.Pages
			continue
		}
		n := min(sub.Pages-skip, v.last+1-at)
		shown, err := p.space.Map(at, at+n-1, sub.Segment, sub.Page+skip)
		if err != nil {
			return win32(err)
		}
		v.view.pieces = append(v.view.pieces, piece{
			first: at, last: at + n - 1, shown: shown, segment: sub.Segment, page: sub.Page + skip,
			file: sub.Segment == v.view.section.file.Segment(), own: sub.own,
		})
		if v.kind == TypeImage {
			prot := sub.Protection
			if v.view.section.attributes&SecNoCache != 0 {
				prot = prot.withoutExecute()
			}
			v.set(at, at+n-1, func(attr) attr { return attr{committed: true, protection: prot} })
		}
		if at, skip = at+n, 0; at > v.last {
			break
		}
	}
	if at <= v.last {
		return AccessDenied // the section is shorter than it says
	}
	return p.promise(v, v.first, v.last, never, attr.promised)
}

// promise commits space for copies of those pages of a view for which there was none and is to be some, and gives back the
// others'. On an error nothing has changed. The pages are held.
// +checklocks:p.mu
func (p *Process) promise(v *vad, first, last uint64, was, is func(attr) bool) error {
	var take, give [][2]uint64
	var n uint64
	v.each(first, last, func(lo, hi uint64, a attr) {
		switch before, after := was(a), is(a); {
		case !before && after:
			take = append(take, [2]uint64{lo, hi})
			n += hi - lo + 1
		case before && !after:
			give = append(give, [2]uint64{lo, hi})
		}
	})
	if most := p.image.Limits.Commit; most > 0 && n > 0 && p.space.Committed()+p.committing+n > most>>pageShift {
		return NotEnoughMemory
	}
	p.committing += n
	err := p.unlocked(func() error { return p.commitRanges(take) })
	p.committing -= n
	if err != nil {
		return err
	}
	for _, r := range give {
		p.space.Decommit(r[0], r[1])
	}
	p.commitPeak = max(p.commitPeak, p.space.Committed())
	return nil
}

// promiseCopies sees that there is space for copies of pages that are alike and held: those of a protection that is lifted
// for a moment have none yet.
func (p *Process) promiseCopies(v *vad, first, last uint64) error {
	p.mu.Lock()
	promised := v.at(first).promised()
	p.mu.Unlock()
	if promised {
		return nil
	}
	return p.commitRanges([][2]uint64{{first, last}})
}

func never(attr) bool { return false }

// unfill takes away what is behind a view. Its pages are held.
// +checklocks:p.mu
func (p *Process) unfill(v *vad) {
	for _, q := range v.view.pieces {
		q.shown.Unmap()
	}
	v.view.pieces = nil
	if i := v.view.image; i != nil {
		i.unview()
		v.view.image = nil
	}
}

// unplace takes a view's allocation away; a placeholder that it took the place of is there again.
// +checklocks:p.mu
func (p *Process) unplace(v *vad) {
	p.remove(v)
	if v.replaced {
		n := newVAD(v.first, v.last, NoAccess)
		n.placeholder = true
		p.insert(n)
	}
}

// Flags of UnmapViewOfFile2.
const (
	UnmapTransientBoost      = 1
	UnmapPreservePlaceholder = 2
)

// UnmapView is UnmapViewOfFile and its kin, of the view at any address in it. InvalidAddress if there is none.
func (p *Process) UnmapView(addr uint64, flags uint32) error {
	if flags&^(UnmapTransientBoost|UnmapPreservePlaceholder) != 0 {
		return InvalidParameter
	}
	c, err := p.changeAllocation(nil, addr>>pageShift)
	var v *vad
	if err == nil {
		v, err = p.viewAt(addr)
	}
	keep := flags&UnmapPreservePlaceholder != 0
	if err == nil && keep && !v.replaced {
		err = InvalidAddress
	}
	if err == nil {
		p.unfill(v)
		if v.large {
			p.forgetLarge(v)
		}
		v.replaced = keep
		p.unplace(v)
	}
	p.done(c)
	if err == nil {
		p.machine.countView(v.view.section, -1)
		p.machine.dereference(v.view.section, false)
	}
	return err
}

// viewAt finds the view at an address. InvalidAddress.
// +checklocks:p.mu
func (p *Process) viewAt(addr uint64) (*vad, error) {
	if v := p.find(addr >> pageShift); v != nil && v.view != nil {
		return v, nil
	}
	return nil, InvalidAddress
}

// countView keeps the number of a section's views.
func (m *Machine) countView(s *Section, n int) {
	m.objects.Lock()
	defer m.objects.Unlock()
	s.views += n
}

// FlushView is FlushViewOfFile: what a view shows is the file, so there is nothing to be written. InvalidAddress if the range
// does not lie in one view.
func (p *Process) FlushView(addr, size uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	v, err := p.viewAt(addr)
	if err != nil {
		return err
	}
	if end := (v.last + 1) << pageShift; size > end-addr {
		return InvalidAddress
	}
	return nil
}

// MappedFile is GetMappedFileName: the path of the file that the view at an address is of. UnexpNetErr if there is none;
// FileInvalid if it is page-file-backed.
func (p *Process) MappedFile(addr uint64) (string, error) {
	p.mu.Lock()
	v, err := p.viewAt(addr)
	if err != nil {
		p.mu.Unlock()
		return "", UnexpNetErr
	}
	s := v.view.section
	p.machine.reference(s)
	p.mu.Unlock()
	defer p.machine.dereference(s, false)
	if s.pageFile {
		return "", FileInvalid
	}
	return s.file.Path(), nil
}

// --- protection ------------------------------------------------------------------------------------------------------------

// reprotection is the protection that a page of a view gets when prot is asked for; ok is false if it cannot have it.
func (v *vad) reprotection(prot Protection) (_ func(attr) attr, ok bool) {
	base := prot.Base()
	if v.kind == TypeImage {
		switch base { // what it shows is never written
		case ReadWrite:
			prot = WriteCopy | prot&^baseMask
		case ExecuteReadWrite:
			prot = ExecuteWriteCopy | prot&^baseMask
		}
	} else if prot.access()&^v.protection.access() != 0 {
		return nil, false
	}
	prot = prot.of(v.protection)
	return func(a attr) attr {
		if a.protection = prot; a.copied {
			a.protection = prot.own()
		}
		return a
	}, true
}

// protectView gives pages of a view a protection that its section permits. They are held.
// +checklocks:p.mu
func (p *Process) protectView(v *vad, first, last uint64, prot Protection) error {
	f, ok := v.reprotection(prot)
	switch {
	case !ok || !v.whole(first, last):
		return InvalidParameter
	case !v.view.committed(v, first, last):
		return InvalidAddress
	}
	if err := p.promise(v, first, last, attr.promised, func(a attr) bool { return f(a).promised() }); err != nil {
		return err
	}
	v.set(first, last, f)
	p.shoot(first, last, v.at(first).protection)
	return nil
}

// commitView is MEM_COMMIT on pages of a view. They are held.
// +checklocks:p.mu
func (p *Process) commitView(v *vad, first, last uint64, prot Protection) error {
	if !v.view.section.pageFile {
		return AccessDenied
	}
	f, ok := v.reprotection(prot)
	if !ok {
		return InvalidParameter
	}
	q := v.view.at(first)
	err := p.unlocked(func() error {
		return win32(q.segment.Commit(q.page+(first-q.first), q.page+(last-q.first)))
	})
	if err != nil {
		return err
	}
	if err := p.promise(v, first, last, attr.promised, func(a attr) bool { return f(a).promised() }); err != nil {
		return err
	}
	v.set(first, last, f)
	p.shoot(first, last, v.at(first).protection)
	return nil
}

// committed says whether pages are, as far as the section says.
func (w *view) committed(v *vad, first, last uint64) bool {
	if !w.reserves() {
		return true
	}
	q := w.at(first)
	is, end := q.segment.CommittedRun(q.page+(first-q.first), q.page+(last-q.first))
	return is && end == q.page+(last-q.first)
}

// state says whether a page of the view is committed, and up to which page at most last that is the same.
func (w *view) state(page, last uint64) (committed bool, end uint64) {
	if !w.reserves() {
		return true, last
	}
	q := w.at(page)
	is, to := q.segment.CommittedRun(q.page+(page-q.first), q.page+(last-q.first))
	return is, q.first + (to - q.page)
}

// --- access ----------------------------------------------------------------------------------------------------------------

// part is consecutive pages of an allocation that are read and written in the same way.
type part struct {
	vad    *vad
	piece  *piece // of a view; nil for private memory
	copied bool   // the process's own
	copies bool   // a store makes it so
	last   uint64 // page
}

// partAt is the part that begins at a page.
// +checklocks:p.mu
func (p *Process) partAt(page uint64) part {
	v := p.find(page)
	r := part{vad: v, last: v.last}
	if v.view == nil {
		return r
	}
	i := v.runAt(page)
	a := v.runs[i].attr
	r.piece, r.copied, r.copies = v.view.at(page), a.copied, a.protection.copies()
	r.last = min(v.end(i), r.piece.last)
	return r
}

// offset is where in the segment an address is, in bytes.
func (q *piece) offset(addr uint64) int64 {
	return int64(q.page<<pageShift + (addr - q.first<<pageShift))
}

// fetch has what real programs have stored in the pages of an access arrive in the segment, and what an image makes of its
// file. Beyond the end of a file that somebody has cut off below its views there are no pages.
func (q *piece) fetch(w *view, addr uint64, n int) error {
	if q.own != nil {
		off := uint64(q.offset(addr))
		return q.own.fill(off>>pageShift, (off+uint64(n)-1)>>pageShift)
	}
	if !q.file {
		return nil // nobody else can have a copy
	}
	if q.beyond(w, addr, n) {
		return mm.StatusInPageError
	}
	return q.segment.Fetch(q.offset(addr), int64(n))
}

// store writes for all to see, real programs too.
func (q *piece) store(w *view, addr uint64, data []byte) error {
	if q.own != nil {
		if err := q.fetch(w, addr, len(data)); err != nil {
			return err
		}
	}
	if !q.file {
		return q.shown.Write(addr, data)
	}
	for len(data) > 0 {
		n := min(len(data), PageSize-int(addr%PageSize))
		page := q.page + (addr>>pageShift - q.first)
		err := q.segment.Edit(page, page, func() error {
			if q.beyond(w, addr, n) {
				return mm.StatusInPageError
			}
			return q.shown.Write(addr, data[:n])
		})
		if err != nil {
			return err
		}
		addr, data = addr+uint64(n), data[n:]
	}
	return nil
}

// beyond says whether an access reaches beyond the last page of the file.
func (q *piece) beyond(w *view, addr uint64, n int) bool {
	end := (uint64(w.section.file.Size()) + PageSize - 1) &^ (PageSize - 1)
	return uint64(q.offset(addr))+uint64(n) > end
}

// loadView reads pages of a view that have been checked and are held.
func (p *Process) loadView(r part, addr uint64, buf []byte) error {
	if r.copied {
		return p.space.Read(addr, buf)
	}
	q, w := r.piece, r.vad.view
	if err := q.fetch(w, addr, len(buf)); err != nil {
		return err
	}
	return q.shown.Read(addr, buf)
}

// storeView writes them. For copies to be made the pages must be held alone.
func (p *Process) storeView(r part, addr uint64, data []byte) error {
	if r.copied {
		return p.space.Write(addr, data)
	}
	q, w := r.piece, r.vad.view
	if !r.copies {
		return q.store(w, addr, data)
	}
	if err := p.promiseCopies(r.vad, addr>>pageShift, (addr+uint64(len(data))-1)>>pageShift); err != nil {
		return err
	}
	if err := q.fetch(w, addr, len(data)); err != nil {
		return err
	}
	for len(data) > 0 {
		n := min(len(data), PageSize-int(addr%PageSize))
		if err := q.shown.WriteCopy(addr, data[:n]); err != nil {
			return err
		}
		page := addr >> pageShift
		p.mu.Lock()
		r.vad.set(page, page, func(a attr) attr { a.protection, a.copied = a.protection.own(), true; return a })
		p.mu.Unlock()
		addr, data = addr+uint64(n), data[n:]
	}
	return nil
}

// InheritHandles gives a new process the handles of another that can be inherited, under the same numbers.
func (p *Process) InheritHandles(from *Process) error {
	from.handles.mu.Lock()
	var all []Handle
	for h, e := range from.handles.open {
		if e.inherit {
			all = append(all, h)
		}
	}
	from.handles.mu.Unlock()
	for _, h := range all {
		if err := p.inherit(from, h); err != nil && !errors.Is(err, InvalidHandle) { // closed meanwhile
			return err
		}
	}
	return nil
}
