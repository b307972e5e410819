"""The hinge losses, under the names that the training looks up."""


def hinge_critic(dis_fake, dis_real):
    return (1 - dis_real).relu().mean(), (1 + dis_fake).relu().mean()


def hinge_generator(dis_fake):
    return dis_fake.mean().neg()


discriminator_loss, generator_loss = hinge_critic, hinge_generator
