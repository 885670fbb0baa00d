def hook(facts):
    return True


number = 7
