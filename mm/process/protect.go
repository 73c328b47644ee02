package process

import "math/bits"

// valid says whether a protection is one that private memory can have: one of the six, with at most one of GUARD, NOCACHE
// and WRITECOMBINE, and none of them with NOACCESS (MiMakeProtectionMask).
func (p Protection) valid() bool {
	base, mod := p.Base(), p&^baseMask
	switch {
	case base&(WriteCopy|ExecuteWriteCopy) != 0, bits.OnesCount32(uint32(base)) != 1:
		return false
	case mod&^(Guard|NoCache|WriteCombine) != 0, bits.OnesCount32(uint32(mod)) > 1:
		return false
	}
	return mod == 0 || base != NoAccess
}

// validView is valid for views, which can be of the protections besides that copy a page when it is written.
func (p Protection) validView() bool {
	switch p.Base() {
	case WriteCopy:
		return (p&^baseMask | ReadWrite).valid()
	case ExecuteWriteCopy:
		return (p&^baseMask | ExecuteReadWrite).valid()
	}
	return p.valid()
}

// of an allocation with protection a: whether memory is cached is a property of the allocation, not of the page.
func (p Protection) of(a Protection) Protection {
	if p.Base() == NoAccess {
		return p.Base()
	}
	return p&^cacheMask | a&cacheMask
}

// Readable says whether memory of this protection can be read. The processors have no pages that can only be executed.
func (p Protection) Readable() bool { return p.Base() > NoAccess }

// Writable says whether it can be written, the writer's own copy included.
func (p Protection) Writable() bool {
	return p&(ReadWrite|WriteCopy|ExecuteReadWrite|ExecuteWriteCopy) != 0
}

// Executable says whether it can be executed under DEP.
func (p Protection) Executable() bool {
	return p&(Execute|ExecuteRead|ExecuteReadWrite|ExecuteWriteCopy) != 0
}

// allows says whether memory can be touched in a way.
func (p Protection) allows(k Kind, dep bool) bool {
	switch {
	case k == Write:
		return p.Writable()
	case k == Fetch && dep:
		return p.Executable()
	}
	return p.Readable()
}
