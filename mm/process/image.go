package process

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"io"
	"slices"
	"sync"

	"memfs/mapping/image"
	"memfs/mm"
)

// controlArea is what all image sections over one file share (Windows Internals 7 ch. 5, "Section objects"): its layout, the
// base that the system has chosen for it, and, for each base at which it is mapped, the pages that the file does not have as
// they are there. Machine.areas has it until its last section is gone; Machine.images guards that and the count.
type controlArea struct {
	machine *Machine
	file    *openFile // has a reference of the area's
	layout  *image.Image
	header  [sha256.Size]byte // of what of the file says how it is laid out: one that was written anew is another image
	base    uint64            // where all who map it would like to have it
	shared  *imagePages       // of sections that all who map the image write together
	records int               // bytes charged
	refs    int

	mu sync.Mutex
	// +checklocks:mu
	at map[uint64]*basedImage
}

// basedImage is an image at one base.
type basedImage struct {
	area        *controlArea
	base        uint64
	own         *imagePages
	subsections []Subsection // without gaps from page 0
	records     int          // bytes charged
	views       int          // area.mu
}

// ImageInfo is what NtQuerySection says of an image section, and its control files (SECTION_IMAGE_INFORMATION).
type ImageInfo struct {
	*image.Image
	Base     uint64 // where those who map it have it, unless it is taken
	FileSize int64
}

func (b *basedImage) info() *ImageInfo { return &ImageInfo{b.area.layout, b.base, b.area.file.Size()} }

// What records cost in bytes, as charged.
const (
	areaBytes       = 1024
	basedBytes      = 256
	subsectionBytes = 64
	pieceBytes      = 128 // of a view's
	fillBytes       = 32  // for each view's worth of pages
)

// imageFile reads a file's bytes for the system.
type imageFile struct{ *openFile }

// ReadAt reads what processes and real programs see.
func (f imageFile) ReadAt(b []byte, off int64) (int, error) {
	left := f.Size() - off
	if left <= 0 {
		return 0, io.EOF
	}
	n := int(min(int64(len(b)), left))
	if n == 0 {
		return 0, nil
	}
	if err := f.Segment().Fetch(off, int64(n)); err != nil {
		return 0, err
	}
	if err := f.Segment().Load(off, b[:n]); err != nil {
		return 0, err
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// mappable says whether processes of an architecture can map images for a machine: 64-bit Windows runs 32-bit programs, and
// Windows on ARM those of the others.
func mappable(a Arch, m image.Machine) bool { return a == ARM64 || m != image.ARM64 }

// transcript is the digest of what was read of a file, and where: two layouts that were made of the same bytes are the same.
type transcript struct {
	file io.ReaderAt
	read hash.Hash
}

func (t *transcript) ReadAt(b []byte, off int64) (int, error) {
	n, err := t.file.ReadAt(b, off)
	_ = binary.Write(t.read, binary.LittleEndian, [2]int64{off, int64(n)})
	t.read.Write(b[:n])
	return n, err
}

// layOut is what a file's headers and relocations say, with the digest of them.
func layOut(f *openFile) (*image.Image, [sha256.Size]byte, error) {
	leave, err := f.machine.enter()
	if err != nil {
		return nil, [sha256.Size]byte{}, err
	}
	defer leave()
	t, size := &transcript{imageFile{f}, sha256.New()}, f.Measure()
	_ = binary.Write(t.read, binary.LittleEndian, size)
	im, err := image.Open(t, size)
	return im, [sha256.Size]byte(t.read.Sum(nil)), err
}

// openImage finds or makes the control area of an executable file, with a reference for a section. BadExeFormat;
// SharingViolation: it is being written all the time.
func (m *Machine) openImage(f *openFile) (*controlArea, error) {
	im, header, err := layOut(f)
	// Nothing keeps a program from writing the file meanwhile. What is read twice in a row has been in it together.
	const patience = 8
	for tries := 0; ; tries++ {
		if err == nil {
			if a := m.areaWith(f.Segment(), header); a != nil {
				return a, nil
			}
		}
		again, now, errNow := layOut(f)
		if now == header {
			break
		}
		if tries == patience {
			return nil, SharingViolation
		}
		im, header, err = again, now, errNow
	}
	if err != nil {
		return nil, imageError(err)
	}
	return m.areaOf(f, im, header)
}

// areaWith finds the control area of a file with a layout, with a reference; nil if there is none.
func (m *Machine) areaWith(seg *mm.Segment, header [sha256.Size]byte) *controlArea {
	m.images.Lock()
	defer m.images.Unlock()
	a := m.areas[seg]
	if a == nil || a.header != header {
		return nil
	}
	a.refs++
	return a
}

// imageError is the Win32 error of what package image says.
func imageError(err error) error {
	if errors.As(err, new(*image.Refusal)) {
		return BadExeFormat
	}
	return win32(err)
}

// areaOf finds the control area of a file's image, or makes it.
func (m *Machine) areaOf(f *openFile, im *image.Image, header [sha256.Size]byte) (*controlArea, error) {
	records := areaBytes + im.Bytes()
	if err := m.sys.ChargeRecord(records); err != nil {
		return nil, win32(err)
	}
	m.images.Lock()
	defer m.images.Unlock()
	if a := m.areas[f.Segment()]; a != nil && a.header == header {
		m.sys.ReleaseRecord(records)
		a.refs++
		return a, nil
	}
	a := &controlArea{machine: m, file: f, layout: im, header: header, records: records, refs: 1, at: make(map[uint64]*basedImage)}
	if a.base = im.Base; im.Dynamic() || im.Base == 0 {
		a.base = m.chooseBase(im)
	}
	if m.areas == nil {
		m.areas = make(map[*mm.Segment]*controlArea)
	}
	m.areas[f.Segment()] = a
	m.reference(f)
	return a, nil
}

// Where the system puts images that let it choose: below, one after another going down, as if from one boot of Windows.
const (
	top32 = 0x77E0_0000
	top64 = 0x7FFF_0000_0000
)

// chooseBase finds the base of an image that no other one has.
// +checklocks:m.images
func (m *Machine) chooseBase(im *image.Image) uint64 {
	top := uint64(top64)
	if im.Bits == 32 || !im.HighEntropy && im.Base < 1<<32 && im.Base != 0 {
		top = top32
	}
	size := (im.Size + Granularity - 1) &^ (Granularity - 1)
	type span struct{ lo, hi uint64 }
	var taken []span
	for _, a := range m.areas {
		taken = append(taken, span{a.base, a.base + a.layout.Size})
	}
	slices.SortFunc(taken, func(a, b span) int { // the highest first
		switch {
		case a.hi > b.hi:
			return -1
		case a.hi < b.hi:
			return 1
		}
		return 0
	})
	for _, t := range taken {
		if t.lo < top && t.hi > top-min(size, top) {
			top = t.lo &^ (Granularity - 1)
		}
	}
	if top < size+Granularity {
		return im.Base // the address space is full: whoever maps it finds a place or none
	}
	return top - size
}

// release drops a section's reference.
func (a *controlArea) release() {
	m := a.machine
	m.images.Lock()
	a.refs--
	gone := a.refs == 0
	if gone && m.areas[a.file.Segment()] == a {
		delete(m.areas, a.file.Segment())
	}
	m.images.Unlock()
	if !gone {
		return
	}
	a.shared.delete()
	m.sys.ReleaseRecord(a.records)
	m.dereference(a.file, false)
}

// mapAt is the image at a base, for one view more. BadExeFormat: its relocations are malformed, so that it can be nowhere but
// where it was linked for.
func (a *controlArea) mapAt(base uint64) (*basedImage, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if b := a.at[base]; b != nil {
		b.views++
		return b, nil
	}
	delta := base - a.layout.Base
	if _, err := a.layout.Relocatable(); err != nil && delta != 0 {
		return nil, BadExeFormat
	}
	b := &basedImage{area: a, base: base, views: 1}
	if a.shared == nil && slices.ContainsFunc(a.layout.Subsections, writtenTogether) {
		a.shared = a.newPages(delta)
	}
	b.own = a.newPages(delta)
	b.lay(delta)
	b.records = basedBytes + len(b.subsections)*subsectionBytes
	if err := a.machine.sys.ChargeRecord(b.records); err != nil {
		b.own.delete()
		return nil, win32(err)
	}
	a.at[base] = b
	return b, nil
}

// view is mapAt for a view of a process, whose own records it charges.
func (a *controlArea) view(base uint64) (*basedImage, error) {
	b, err := a.mapAt(base)
	if err != nil {
		return nil, err
	}
	if err := a.machine.sys.ChargeRecord(len(b.subsections) * pieceBytes); err != nil {
		b.unmap()
		return nil, win32(err)
	}
	return b, nil
}

// unview drops what view took.
func (b *basedImage) unview() {
	b.area.machine.sys.ReleaseRecord(len(b.subsections) * pieceBytes)
	b.unmap()
}

// unmap drops a reference that mapAt took.
func (b *basedImage) unmap() {
	a := b.area
	a.mu.Lock()
	b.views--
	gone := b.views == 0
	if gone {
		delete(a.at, b.base)
	}
	a.mu.Unlock()
	if gone {
		b.own.delete()
		a.machine.sys.ReleaseRecord(b.records)
	}
}

// writtenTogether says that what one process writes is seen by all (IMAGE_SCN_MEM_SHARED).
func writtenTogether(s image.Subsection) bool {
	return s.Access&(image.Write|image.Shared) == image.Write|image.Shared
}

// lay says which page of which segment each page of the image shows: the file's own where they are the same byte for byte,
// so that everybody who has the file open has them in common; else pages of the image.
func (b *basedImage) lay(delta uint64) {
	im := b.area.layout
	add := func(n uint64, own *imagePages, page uint64, prot Protection) {
		seg := b.area.file.Segment()
		if own != nil {
			seg = own.seg
		}
		if k := len(b.subsections) - 1; k >= 0 {
			if s := &b.subsections[k]; s.Segment == seg && s.Protection == prot && s.Page+s.Pages == page {
				s.Pages += n
				return
			}
		}
		b.subsections = append(b.subsections, Subsection{Pages: n, Segment: seg, Page: page, Protection: prot, own: own})
	}
	next := uint64(0)
	for _, s := range im.Subsections {
		first, end := s.RVA>>pageShift, (s.RVA+s.Size)>>pageShift
		if first > next {
			add(first-next, b.own, next, NoAccess)
		}
		prot, backed := Protection(s.Protection()), first+(s.Raw+PageSize-1)>>pageShift
		own := b.own
		if writtenTogether(s) {
			own = b.area.shared
		}
		for page := first; page < backed; page++ {
			filePage, ok := im.FilePage(page)
			if ok && !writtenTogether(s) && (delta == 0 || !im.Fixed(page)) {
				add(1, nil, filePage, prot)
			} else {
				add(1, own, page, prot)
			}
		}
		if end > backed {
			add(end-backed, own, backed, prot)
		}
		next = end
	}
	if end := im.Size >> pageShift; end > next {
		add(end-next, b.own, next, NoAccess)
	}
}

// imagePages are pages of an image that no file has as they are: sections that the file has at no page's offset, and pages
// with addresses in them. Each is read from the file and fixed when it is touched first, by whoever that is, and then it is
// like a page of a page-file-backed section.
type imagePages struct {
	area  *controlArea
	seg   *mm.Segment
	delta uint64

	mu sync.Mutex
	// +checklocks:mu
	views map[uint64]*filling // by number of a view's worth of pages
	// +checklocks:mu
	records int
}

// filling is which pages of a view's worth are there.
type filling struct {
	done uint64        // a bit for each
	busy chan struct{} // closed when whoever is at it has ended; nil = nobody is
}

func (a *controlArea) newPages(delta uint64) *imagePages {
	return &imagePages{
		area: a, seg: a.machine.sys.NewSegment(nil), delta: delta, views: make(map[uint64]*filling),
	}
}

func (i *imagePages) delete() {
	if i == nil {
		return
	}
	i.seg.Delete()
	i.mu.Lock()
	n := i.records
	i.records, i.views = 0, nil
	i.mu.Unlock()
	i.area.machine.sys.ReleaseRecord(n)
}

// fill reads pages that are not there yet.
func (i *imagePages) fill(first, last uint64) error {
	for page := first; page <= last; {
		key := page / mm.ViewPages
		end := min(last, key*mm.ViewPages+mm.ViewPages-1)
		if err := i.fillView(key, page, end); err != nil {
			return err
		}
		page = end + 1
	}
	return nil
}

// fillView is fill within a view's worth of pages.
func (i *imagePages) fillView(key, first, last uint64) error {
	for {
		todo, wait, err := i.begin(key, first, last)
		switch {
		case err != nil || todo == 0 && wait == nil:
			return err
		case wait != nil:
			<-wait
			continue
		}
		done := uint64(0)
		for page := first; page <= last && err == nil; page++ {
			if bit := uint64(1) << (page % mm.ViewPages); todo&bit != 0 {
				if err = i.read(page); err == nil {
					done |= bit
				}
			}
		}
		i.end(key, done)
		if err != nil {
			return err
		}
	}
}

// begin says which pages are missing, and makes filling them the caller's; or for what to wait.
func (i *imagePages) begin(key, first, last uint64) (todo uint64, wait chan struct{}, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.views == nil {
		return 0, nil, mm.StatusDeleted
	}
	f := i.views[key]
	for page := first; page <= last; page++ {
		bit := uint64(1) << (page % mm.ViewPages)
		im := i.area.layout
		if (f == nil || f.done&bit == 0) && (!im.Zero(page) || i.delta != 0 && im.Fixed(page)) {
			todo |= bit
		}
	}
	switch {
	case todo == 0:
		return 0, nil, nil
	case f == nil:
		if err := i.area.machine.sys.ChargeRecord(fillBytes); err != nil {
			return 0, nil, err
		}
		i.records += fillBytes
		f = new(filling)
		i.views[key] = f
	case f.busy != nil:
		return 0, f.busy, nil
	}
	f.busy = make(chan struct{})
	return todo, nil, nil
}

func (i *imagePages) end(key, done uint64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if f := i.views[key]; f != nil {
		f.done |= done
		close(f.busy)
		f.busy = nil
	}
}

// read has one page be what the file makes of it.
func (i *imagePages) read(page uint64) error {
	var b [PageSize]byte
	if err := i.area.layout.ReadAt(imageFile{i.area.file}, b[:], page<<pageShift, i.delta); err != nil {
		return err
	}
	return i.seg.Store(int64(page)<<pageShift, b[:])
}
